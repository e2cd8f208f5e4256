"""Terminals of restarted tasks, from who holds them (``userspace/fds/terminal_holder.py``) to who sits down there."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crd.engine.userspace.fds.stdio import HOLDER
from crd.errors import BadRequest, NativeError, TargetError, TerminalNotHeld
from crd.native.syscall import NR, pidfd_getfd, syscall
from crd.target import procfs, select
from crd.target.terminals import PTMX, is_slave, slave_index, slave_name

if TYPE_CHECKING:
    from collections.abc import Iterator

_DOOR = 0
_HOLDER_WORDS = 7
_HINT = "crctl restart --stdio pty gives tasks a terminal that crd holds, if they had one of somebody else's."


@dataclass(frozen=True, slots=True)
class HeldTerminal:
    """A terminal whose master is held for restarted tasks.

    Attributes:
        name: of its slave.
        root_pid: of the first task, 0 if that has ended.
        door: our descriptor of the way to the holder.
        index: number of the terminal.
    """

    name: str
    root_pid: int
    door: int
    index: int

    def give_to(self, connection: int) -> None:
        """Have the terminal given to who is at the other end of a connection; raises TerminalNotHeld."""
        try:
            with socket.socket(fileno=os.dup(self.door)) as door:
                socket.send_fds(door, [str(self.index).encode()], [connection])
        except OSError as error:
            raise TerminalNotHeld(f"nobody holds {self.name} any more") from error


@contextmanager
def held_terminal(pid: int) -> Iterator[HeldTerminal]:
    """Find the terminal that a process is at, and its holder.

    Raises:
        TargetNotFound, TargetGone: there is no such process.
        TerminalNotHeld: it has none, or one of somebody else's.
    """
    index = _terminal_of(select.by_pid(pid).pid)
    name = slave_name(index)
    found = next(filter(None, (_opened(holder, index) for holder in procfs.pids())), None)
    if not found:
        raise TerminalNotHeld(f"process {pid} is at {name}, which crd does not hold", hint=_HINT)
    root_pid, door = found
    try:
        yield HeldTerminal(name, root_pid, door, index)
    finally:
        os.close(door)


@contextmanager
def connection_of(pid: int, fd: int) -> Iterator[int]:
    """Give a duplicate of a socket that another process has.

    Raises:
        BadRequest: it has no such descriptor, or that is none.
    """
    try:
        taken = _taken(pid, fd)
    except NativeError as error:
        raise BadRequest(f"descriptor {fd} of process {pid}: {error.message}") from error
    try:
        if not stat.S_ISSOCK(os.fstat(taken).st_mode):
            raise BadRequest(f"descriptor {fd} of process {pid} is no socket")
        yield taken
    finally:
        os.close(taken)


def _terminal_of(pid: int) -> int:
    """Return the number of the terminal that controls a process, or else is one of its standard streams."""
    if is_slave(device := procfs.stat(pid).terminal):
        return slave_index(device)
    for fd in range(3):
        with suppress(TargetError):
            if is_slave(device := procfs.fd_stat(pid, fd).st_rdev):
                return slave_index(device)
    raise TerminalNotHeld(f"process {pid} has no terminal", hint=_HINT)


def _opened(pid: int, index: int) -> tuple[int, int] | None:
    """Return the first task, 0 if it has ended, for which a process holds a terminal, and the way to that holder.

    None: it does not.
    """
    with suppress(TargetError, NativeError, ValueError):  # it has ended
        words = procfs.command_line(pid)
        if len(words) == _HOLDER_WORDS and Path(words[3]).name == HOLDER.name and _is_ours(pid):
            first, count = int(words[-2]), int(words[-1])
            if any(_holds(pid, master, index) for master in range(first + 1, first + 1 + count)):
                return max(0, int(procfs.fdinfo(pid, first).extra["Pid"])), _taken(pid, _DOOR)
    return None


def _is_ours(pid: int) -> bool:
    return procfs.status(pid).uids[0] == os.geteuid()


def _holds(pid: int, fd: int, index: int) -> bool:
    return (procfs.fd_stat(pid, fd).st_rdev == PTMX
            and procfs.fdinfo(pid, fd).extra.get("tty-index") == str(index))


def _taken(pid: int, fd: int) -> int:
    pidfd = syscall(NR.PIDFD_OPEN, pid, 0)
    try:
        return pidfd_getfd(pidfd, fd)
    finally:
        os.close(pidfd)
