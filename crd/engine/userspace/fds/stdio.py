"""Terminals whose other end is not in the image, as of what a shell has started: something takes their place.

What that is the caller says (``api.Stdio``).  The caller's own terminal belongs to the session that we are in, so the
first task joins that instead of leading one.  A fresh terminal controls a session of the tasks' own; its master has
whoever relays what is said there, or else a process that does no more than hold it (``terminal_holder.py``).
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from crd.engine.api import Pids, Stdio
from crd.errors import RestartUnsupported
from crd.image.objects import OutsideTerminal
from crd.target.terminals import slave_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crd.engine.api import RestartOptions
    from crd.engine.userspace.broker import Broker
    from crd.engine.userspace.plan import Plan

OURS = -1
"""In place of the number of a session: the one that crd is in."""

TCGETS2, TCSETS2 = 0x802C542A, 0x402C542B
_LINE = (slice(8, 12), slice(36, 44))
"""Of struct termios2: c_cflag, and the speeds (asm-generic/termbits.h)."""
_NULL = "/dev/null"
HOLDER = Path(__file__).with_name("terminal_holder.py")
_HINT = "Use --stdio pty, a fresh terminal, or --stdio null."


def callers() -> str:
    """Return the path of the terminal that controls our session, if it is one of our standard streams; else ""."""
    for fd in range(3):
        with suppress(OSError):
            os.tcgetpgrp(fd)
            return os.ttyname(fd)
    return ""


def check(plan: Plan, options: RestartOptions) -> None:
    """Make sure that the caller has a terminal, where that is to take the place of others.

    Raises:
        RestartUnsupported: there is none, or it cannot be that.
    """
    for record in plan.of(OutsideTerminal) if options.stdio == Stdio.INHERIT else ():
        what = f"the place of the terminal {slave_name(record.index)}"
        if not callers():
            raise RestartUnsupported(f"the caller has no terminal that could take {what}",
                                     hint=f"Run crd restart in a terminal.  {_HINT}")
        if options.pids == Pids.NAMESPACE:
            raise RestartUnsupported(f"the caller's terminal cannot take {what} in a pid namespace of its own",
                                     hint=_HINT)
        if record.session not in {0, plan.process.session}:
            raise RestartUnsupported(f"the caller's terminal cannot take {what}: that controls session "
                                     f"{record.session}, which is not the first process's", hint=_HINT)


def session_of(plan: Plan, stdio: Stdio) -> int | None:
    """Return the session that those are to be in who were in that of the first process; None: as it was."""
    if any(record.session == plan.process.session for record in plan.of(OutsideTerminal)):
        return {Stdio.INHERIT: OURS, Stdio.PTY: plan.pid}.get(stdio)
    return None


def leader_of(plan: Plan, record: OutsideTerminal) -> int:
    """Return the process of the image that leads the session which a terminal controls, or is to lead it; 0: none."""
    if record.session in plan.shared.pids:
        return record.session
    return plan.pid if record.session and record.session == plan.process.session else 0


def substitute(stdio: Stdio) -> str:
    """Say what takes the place of a terminal."""
    return {Stdio.INHERIT: f"the caller's, {callers()}", Stdio.PTY: "a fresh one", Stdio.NULL: _NULL}[stdio]


def open_in_place(stdio: Stdio, flags: int) -> int:
    """Open what takes the place of a terminal that is none of ours: the caller's, or none."""
    wait = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    return os.open(callers() if stdio == Stdio.INHERIT else _NULL, flags & os.O_ACCMODE | wait)


def take_over(record: OutsideTerminal, group: int, broker: Broker) -> None:
    """Have the caller's terminal set as the image knew it, and a process group in its foreground, once all is made.

    What the line is like, and how fast, stays.
    """
    fd = broker.hold(os.open(callers(), os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    before, ours = fcntl.ioctl(fd, TCGETS2, bytes(len(record.settings))), os.tcgetpgrp(fd)
    settings = bytearray(record.settings)
    for part in _LINE:
        settings[part] = before[part]

    def put(settings: bytes, group: int) -> None:
        with _unstopped():
            fcntl.ioctl(fd, TCSETS2, settings)
            os.tcsetpgrp(fd, group)

    broker.undo(lambda: put(before, ours))
    broker.at_last("the terminal", lambda: put(bytes(settings), group))


@contextmanager
def _unstopped() -> Iterator[None]:
    """Let a terminal be set from the background, too (SIGTTOU)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def have_redrawn(group: int, broker: Broker) -> None:
    """Have programs in the foreground draw their screen again: what they had drawn was on another one."""
    broker.afterwards(lambda: os.killpg(group, signal.SIGWINCH))


def hold(masters: Sequence[int], pid: int) -> None:
    """Have a process of its own hold masters, and take in what is said there, until a process and others have ended."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pidfd = os.pidfd_open(pid)
    with ours, theirs:
        try:
            held = (ours.fileno(), pidfd, *masters)
            door = max(*held, theirs.fileno()) + 1
            actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                       *((os.POSIX_SPAWN_DUP2, fd, door + at) for at, fd in enumerate(held))]
            words = map(str, (door, door + 1, len(masters)))
            os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", str(HOLDER), *words], {},
                           file_actions=actions, setsid=True, setsigmask=(), setsigdef=(signal.SIGPIPE,))
        finally:
            os.close(pidfd)
