"""Pseudo-terminals with both ends inside the task: pty(7), ioctl_tty(2)."""

from __future__ import annotations

import fcntl
import os
import select
import stat
import struct
import termios
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from crd.engine.userspace.fds.kind import Kind, Making, TryLaterError
from crd.errors import Obstacle, ResourceChanged, TargetUnsupported
from crd.image.objects import TERMIOS_BYTES, Terminal, TerminalEnd
from crd.target.terminals import PTMX, is_terminal, slave_index, slave_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crd.engine.api import Files
    from crd.engine.userspace.clash import Clash
    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.fds.table import FileTable
    from crd.engine.userspace.plan import Plan
    from crd.image.codec import Record

_TCGETS2, _TCSETS2 = 0x802C542A, 0x402C542B
_TIOCGPTN, _TIOCSPTLCK, _TIOCGPTPEER = 0x80045430, 0x40045431, 0x5441
_TIOCGPKT, _TIOCGPTLCK, _TIOCGEXCL = 0x80045438, 0x80045439, 0x80045440
_WINDOW = struct.Struct("<4H")
_OPENS_MAX = 4096


class Terminals(Kind):
    """A TERMINAL for each pair, a TERMINAL_END for each description."""

    def recognises(self, one: Description) -> bool:
        """By its device number."""
        return is_terminal(one.stat)

    def dump(self, found: Sequence[Description], table: FileTable) -> Iterator[Record]:
        """Note settings; what waits to be read can be neither seen whole nor put back.

        Raises:
            TryLaterError: something waits.
            TargetUnsupported: the master is another process's.
        """
        masters = {_number(one.borrowed, _TIOCGPTN): one for one in found if one.stat.st_rdev == PTMX}
        objrefs = {}
        for index, one in masters.items():
            objrefs[index] = table.objects.new()
            yield _dump(objrefs[index], index, one)
        for one in found:
            master = one.stat.st_rdev == PTMX
            index = _number(one.borrowed, _TIOCGPTN) if master else slave_index(one.stat.st_rdev)
            if index not in masters:
                raise TargetUnsupported(reasons=[Obstacle("fd.terminal", one.name, "is a terminal of another process")])
            if _number(one.borrowed, termios.FIONREAD):
                raise TryLaterError(Obstacle("fd.terminal", one.name, "has input that the program has not read",
                                             "Try again when it has read that."))
            yield TerminalEnd(objref=one.objref, terminal=objrefs[index], master=master, flags=one.flags,
                              owner=one.owner)

    def clashes(self, plan: Plan, files: Files) -> Iterator[Clash]:  # noqa: ARG002
        """Tell which numbers are taken."""
        for record in plan.of(Terminal):
            if os.path.lexists(slave_name(record.index)):
                yield _taken(record.index)

    def make(self, making: Making) -> None:
        """Make each pair under its number; raises ResourceChanged."""
        ends: dict[int, list[TerminalEnd]] = {}
        for end in making.wanted(TerminalEnd):
            ends.setdefault(end.terminal, []).append(end)
        for record in making.plan.of(Terminal):
            if record.objref in ends:
                _restart(record, ends[record.objref], making)


def _number(fd: int, request: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, request, bytes(4)), "little")


def _dump(objref: int, index: int, one: Description) -> Terminal:
    fd = one.borrowed
    node = os.stat(slave_name(index))
    poll = select.poll()
    poll.register(fd, 0)
    settings = fcntl.ioctl(fd, _TCGETS2, bytes(TERMIOS_BYTES))
    rows, columns, width, height = _WINDOW.unpack(fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(_WINDOW.size)))
    return Terminal(
        objref=objref, index=index, settings=settings, rows=rows, columns=columns, width=width, height=height,
        locked=_number(fd, _TIOCGPTLCK), packets=_number(fd, _TIOCGPKT),
        exclusive=_number(fd, _TIOCGEXCL), hung_up=any(events & select.POLLHUP for _, events in poll.poll(0)),
        mode=stat.S_IMODE(node.st_mode), uid=node.st_uid, gid=node.st_gid)


def _restart(record: Terminal, ends: Sequence[TerminalEnd], making: Making) -> None:
    master = _open_master(record.index)
    fcntl.ioctl(master, _TIOCSPTLCK, bytes(4))
    for end in ends:
        fd = master if end.master else _open_slave(master, end.flags & os.O_ACCMODE)
        making.add(end.objref, fd, end.flags)
    if record.hung_up:
        os.close(_open_slave(master, os.O_RDWR))
    fcntl.ioctl(master, _TCSETS2, record.settings)
    fcntl.ioctl(master, termios.TIOCSWINSZ, _WINDOW.pack(record.rows, record.columns, record.width, record.height))
    fcntl.ioctl(master, termios.TIOCPKT, record.packets.to_bytes(4, "little"))
    if record.exclusive:
        fcntl.ioctl(master, termios.TIOCEXCL)
    fcntl.ioctl(master, _TIOCSPTLCK, record.locked.to_bytes(4, "little"))
    with suppress(PermissionError):  # then it is its maker's, and so are we
        os.chown(slave_name(record.index), record.uid, record.gid)
    Path(slave_name(record.index)).chmod(record.mode)


def _open_slave(master: int, access: int) -> int:
    return fcntl.ioctl(master, _TIOCGPTPEER, access | os.O_NOCTTY | os.O_CLOEXEC)


def _open_master(index: int) -> int:
    """Open masters until one has the number: the lowest that is free comes first."""
    spare: list[int] = []
    try:
        for _ in range(_OPENS_MAX):
            master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            found = _number(master, _TIOCGPTN)
            if found == index:
                return master
            spare.append(master)
            if found > index:
                break
    except OSError as error:
        raise ResourceChanged(f"terminal {index}: {error.strerror}", path="/dev/ptmx") from error
    finally:
        for fd in spare:
            os.close(fd)
    raise _taken(index)


def _taken(index: int) -> ResourceChanged:
    return ResourceChanged(f"the terminal {slave_name(index)} is in use", path=slave_name(index),
                           hint="End what uses it; numbers of terminals are given out from the lowest on.")
