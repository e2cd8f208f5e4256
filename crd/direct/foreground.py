"""Staying with restarted tasks as a shell does with a job."""

from __future__ import annotations

import os
import signal
import termios
from typing import TYPE_CHECKING

from crd.console.relay import begin, is_ours, relay

if TYPE_CHECKING:
    from crd.engine.api import RestartResult


def wait_as_a_shell(result: RestartResult) -> int:
    """Wait until tasks that have the terminal have ended; return as ``wait_for_root``.

    If they are stopped (Ctrl-Z) so are we, and go on with them: to the shell that started us we are one job.
    """
    from crd.engine.api import wait_for_root

    fd = next(fd for fd in range(3) if os.isatty(fd))
    while True:
        end = os.waitid(os.P_PID, result.root_pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
        if end is None or end.si_code != os.CLD_STOPPED:
            return wait_for_root(result)
        os.waitpid(result.root_pid, os.WUNTRACED)
        group, settings = os.getpgid(result.root_pid), termios.tcgetattr(fd)
        os.tcsetpgrp(fd, os.getpgrp())
        os.kill(os.getpid(), signal.SIGSTOP)
        if is_ours(fd):  # and not in the background
            termios.tcsetattr(fd, termios.TCSADRAIN, settings)
            os.tcsetpgrp(fd, group)
        os.killpg(group, signal.SIGCONT)


def wait_at_their_terminal(result: RestartResult) -> int:
    """Relay fresh terminals until the first task has ended; return as ``wait_for_root``."""
    from crd.engine.api import wait_for_root

    pidfd = os.pidfd_open(result.root_pid)
    try:
        begin(result.terminals[0])
        relay(result.terminals, pidfd)
    finally:
        os.close(pidfd)
    return wait_for_root(result)
