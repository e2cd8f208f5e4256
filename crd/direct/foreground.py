"""Staying with restarted tasks at a terminal: as a shell does with a job, or as what relays a fresh terminal."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import termios
import tty
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from crd.engine.api import RestartResult

_PIECE_BYTES = 1 << 16
_IN, _OUT = 0, 1


@contextmanager
def terminal_kept() -> Iterator[None]:
    """Put the terminal back to how it was, and ourselves into its foreground, however that ends.

    Without a terminal there is nothing to do.
    """
    fd = next((fd for fd in range(3) if _is_ours(fd)), None)
    if fd is None:
        yield
        return
    settings = termios.tcgetattr(fd)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # we take it back from the background
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        yield
    finally:
        with suppress(OSError, termios.error):  # it is gone
            os.tcsetpgrp(fd, os.getpgrp())
            termios.tcsetattr(fd, termios.TCSADRAIN, settings)


def _is_ours(fd: int) -> bool:
    """Whether a descriptor is of the terminal that controls our session, and we are in its foreground."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


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
        if _is_ours(fd):  # and not in the background
            termios.tcsetattr(fd, termios.TCSADRAIN, settings)
            os.tcsetpgrp(fd, group)
        os.killpg(group, signal.SIGCONT)


def relay(result: RestartResult) -> int:
    """Relay between our standard streams and fresh terminals until the first task has ended; return its exit status.

    What is typed goes to the first of them; what is said on the others is dropped.
    """
    from crd.engine.api import wait_for_root

    master = result.terminals[0]
    if os.isatty(_IN):
        signal.signal(signal.SIGWINCH, lambda *_: _resize(master))
        _resize(master)
        tty.setraw(_IN)
    pidfd = os.pidfd_open(result.root_pid)
    try:
        _copy(pidfd, list(result.terminals))
    finally:
        os.close(pidfd)
    return wait_for_root(result)


def _resize(master: int) -> None:
    """Give the terminal the size of ours, of which the kernel tells its foreground (SIGWINCH)."""
    with suppress(OSError):
        fcntl.ioctl(master, termios.TIOCSWINSZ, fcntl.ioctl(_IN, termios.TIOCGWINSZ, bytes(8)))


def _copy(pidfd: int, masters: list[int]) -> None:
    """Copy in both directions; typed input waits while a program does not take it, which keeps no output waiting."""
    first, typed, sources = masters[0], b"", [_IN]
    os.set_blocking(first, False)
    while True:
        ended = select.select([pidfd], [], [], 0)[0]
        readable, writable, _ = select.select([*masters, *([] if typed or ended else [pidfd, *sources])],
                                              [first] if typed and not ended else [], [], 0 if ended else None)
        if ended and not readable:
            return
        for master in readable:
            if master in masters and not _say(master, aloud=master == first):
                masters.remove(master)
        if _IN in readable:
            typed = os.read(_IN, _PIECE_BYTES)
            sources = sources if typed else []
        if writable:
            with suppress(BlockingIOError, OSError):
                typed = typed[os.write(first, typed):]


def _say(master: int, *, aloud: bool) -> bool:
    """Copy what a program says; false: nobody has its terminal open any more."""
    try:
        said = os.read(master, _PIECE_BYTES)
    except BlockingIOError:
        return True
    except OSError:
        return False
    while said and aloud:
        said = said[os.write(_OUT, said):]
    return True
