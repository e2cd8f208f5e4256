"""Pseudo-terminals, also those that control a session: pty(7), ioctl_tty(2).

Those whose master is another process's are noted as they are; ``stdio`` says what takes their place.

A session gets its terminal when its leader has made it and has no children in it yet, for these inherit it; so the
masters are opened before the tasks are made (``open_masters``).
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import struct
import termios
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crd.engine.api import Stdio
from crd.engine.userspace.fds import stdio
from crd.engine.userspace.fds.kind import Kind, Making, TryLaterError
from crd.errors import Obstacle, ResourceChanged, RestartUnsupported, TargetUnsupported
from crd.image.objects import TERMIOS_BYTES, OutsideTerminal, Terminal, TerminalEnd
from crd.native.syscall import NR
from crd.target import procfs
from crd.target.paths import Reach, reach
from crd.target.terminals import PTMX, TTY, is_terminal, slave_index, slave_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from crd.engine.api import Files
    from crd.engine.userspace.broker import Broker
    from crd.engine.userspace.clash import Clash
    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.fds.table import FileTable
    from crd.engine.userspace.plan import Plan
    from crd.engine.userspace.vessel import Vessel
    from crd.image.codec import Record

_TIOCGPTN, _TIOCSPTLCK, _TIOCGPTPEER, _TIOCGSID = 0x80045430, 0x40045431, 0x5441, 0x5429
_TIOCGDEV = 0x80045432
_TIOCGPKT, _TIOCGPTLCK, _TIOCGEXCL = 0x80045438, 0x80045439, 0x80045440
_IOCTL = 16
_WINDOW = struct.Struct("<4H")
_OPENS_MAX = 4096


@dataclass(frozen=True, slots=True)
class Masters:
    """Our descriptors of terminals that are being made.

    Attributes:
        fds: of masters, by objref.
        controlling: of slaves, by the process in the image that leads the session which the terminal controls.
        stdio: what takes the place of terminals of others.
        fresh: those of the masters whose terminals do.
    """

    fds: dict[int, int]
    controlling: dict[int, int]
    stdio: Stdio
    fresh: list[int]


class Terminals(Kind):
    """A TERMINAL for each pair, an OUTSIDE_TERMINAL for each of others, a TERMINAL_END for each description."""

    def recognises(self, one: Description) -> bool:
        """By its device number."""
        return is_terminal(one.stat)

    def dump(self, found: Sequence[Description], table: FileTable) -> Iterator[Record]:
        """Note settings; what waits to be read can be neither seen whole nor put back.

        Raises:
            TryLaterError: something waits.
            TargetUnsupported: nobody has the master.
        """
        masters = {_number(one.borrowed, _TIOCGPTN): one for one in found if one.stat.st_rdev == PTMX}
        objrefs = {}
        for index, one in masters.items():
            objrefs[index] = table.objects.new()
            yield _dump(objrefs[index], index, one)
        for one in found:
            master = one.stat.st_rdev == PTMX
            index = _number(one.borrowed, _TIOCGPTN) if master else _slave_index(one)
            if index not in objrefs:
                objrefs[index] = table.objects.new()
                yield _dump_outside(objrefs[index], index, one, table)
            if index in masters and _number(one.borrowed, termios.FIONREAD):
                raise TryLaterError(Obstacle("fd.terminal", one.name, "has input that the program has not read",
                                             "Try again when it has read that."))
            yield TerminalEnd(objref=one.objref, terminal=objrefs[index], master=master, flags=one.flags,
                              owner=one.owner)

    def clashes(self, plan: Plan, files: Files) -> Iterator[Clash]:  # noqa: ARG002
        """Tell which numbers are taken."""
        for record in plan.of(Terminal):
            if os.path.lexists(slave_name(record.index)):
                yield _taken(record.index)
            if record.session and record.session not in plan.shared.pids:
                yield RestartUnsupported(f"the terminal {slave_name(record.index)} controls session {record.session}, "
                                         "whose leader is not in the image")

    def make(self, making: Making) -> None:
        """Make each pair under its number; raises ResourceChanged."""
        ends: dict[int, list[TerminalEnd]] = {}
        for end in making.wanted(TerminalEnd):
            ends.setdefault(end.terminal, []).append(end)
        for record in making.plan.of(Terminal):
            if record.objref in ends:
                _restart(record, ends[record.objref], making)
        for outside in making.plan.of(OutsideTerminal):
            if outside.objref in ends:
                _restart_outside(outside, ends[outside.objref], making)

    def number(self, making: Making, numbers: Mapping[int, int]) -> None:
        """Have the leader of each session that a terminal controls put the process group into the foreground."""
        for record in making.plan.of(Terminal):
            if record.foreground:
                if group := numbers.get(record.foreground):
                    _put_into_foreground(record.session, making, group)
                else:
                    making.notes.append(f"nobody is in the foreground of {slave_name(record.index)}: process group "
                                        f"{record.foreground} is not in the image")
        for outside in making.plan.of(OutsideTerminal) if making.masters.stdio != Stdio.NULL else ():
            if leader := stdio.leader_of(making.plan, outside):
                # whoever was in the foreground, as a shell outside, would have brought the first task there again
                group = numbers.get(outside.foreground) or numbers[making.plan.process.process_group]
                if making.masters.stdio == Stdio.PTY:
                    _put_into_foreground(leader, making, group)
                else:
                    stdio.take_over(outside, group, making.broker)
                stdio.have_redrawn(group, making.broker)


def open_masters(plan: Plan, broker: Broker, wish: Stdio) -> Masters:
    """Open the master of each terminal under its number, or fresh, and a slave of each that controls a session.

    Each has the size of its window while nobody is there to be told of that (SIGWINCH).

    Raises:
        ResourceChanged: a number is taken.
    """
    masters = Masters({}, {}, wish, [])
    for record in plan.of(Terminal):
        _add_master(record, _open_master(record.index), record.session, masters, broker)
    for outside in plan.of(OutsideTerminal) if wish == Stdio.PTY else ():
        leader = stdio.leader_of(plan, outside)
        master = _add_master(outside, _open_any_master(), leader, masters, broker)
        masters.fresh.insert(0 if leader == plan.pid else len(masters.fresh), master)
    return masters


def _add_master(record: Terminal | OutsideTerminal, master: int, leader: int, masters: Masters, broker: Broker) -> int:
    masters.fds[record.objref] = broker.hold(master)
    fcntl.ioctl(master, _TIOCSPTLCK, bytes(4))
    fcntl.ioctl(master, termios.TIOCSWINSZ, _WINDOW.pack(record.rows, record.columns, record.width, record.height))
    if leader:
        masters.controlling[leader] = broker.hold(_open_slave(master, os.O_RDWR))
    return master


def control(leader: Vessel, slave: int, broker: Broker) -> None:
    """Have a vessel that leads a session without a terminal get one."""
    pulled = broker.pull(leader.batch, slave)
    leader.batch.call(_IOCTL, pulled, termios.TIOCSCTTY, 0, what="TIOCSCTTY")
    leader.batch.call(NR.CLOSE, pulled)
    leader.run()


def _put_into_foreground(session: int, making: Making, group: int) -> None:
    """Have the leader do it: all signals of it are blocked still, so that it may do so from the background."""
    leader = making.vessels[session]
    pulled = making.broker.pull(leader.batch, making.masters.controlling[session])
    leader.batch.call(_IOCTL, pulled, termios.TIOCSPGRP, leader.batch.data(group.to_bytes(4, "little")),
                      what="TIOCSPGRP")
    leader.batch.call(NR.CLOSE, pulled)
    leader.run()


def _number_or_none(fd: int, request: int) -> int:
    """Return a number that the terminal may not have."""
    try:
        return _number(fd, request)
    except OSError:  # ENOTTY: it controls no session
        return 0


def _number(fd: int, request: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, request, bytes(4)), "little")


def _slave_index(one: Description) -> int:
    """Return the number of the terminal that a slave is of, or that it is by another name."""
    return slave_index(_number(one.borrowed, _TIOCGDEV) if one.stat.st_rdev == TTY else one.stat.st_rdev)


def _dump(objref: int, index: int, one: Description) -> Terminal:
    fd = one.borrowed
    poll = select.poll()
    poll.register(fd, 0)
    session = _number_or_none(fd, _TIOCGSID)
    return Terminal(
        objref=objref, index=index, locked=_number(fd, _TIOCGPTLCK), packets=_number(fd, _TIOCGPKT),
        exclusive=_number(fd, _TIOCGEXCL), hung_up=any(events & select.POLLHUP for _, events in poll.poll(0)),
        session=session, foreground=_number_or_none(fd, termios.TIOCGPGRP) if session else 0, **_settings(index, fd))


def _dump_outside(objref: int, index: int, one: Description, table: FileTable) -> OutsideTerminal:
    """Ask the slave, which does not tell whose session it controls: its members tell."""
    if one.stat.st_rdev != TTY and reach(one.link, one.stat) is not Reach.SAME:
        raise TargetUnsupported(reasons=[Obstacle("fd.terminal", one.name, "is a terminal whose other end is gone")])
    session = foreground = 0
    for pid in dict.fromkeys(record.pid for record in table.descriptors):
        its = procfs.stat(pid)
        if its.terminal and slave_index(its.terminal) == index:
            session, foreground = its.session, max(0, its.foreground)
            break
    return OutsideTerminal(objref=objref, index=index, session=session, foreground=foreground,
                           **_settings(index, one.borrowed))


def _settings(index: int, fd: int) -> dict[str, Any]:
    """Return the fields that tell how a terminal is set, by either end."""
    node = os.stat(slave_name(index))
    settings = fcntl.ioctl(fd, stdio.TCGETS2, bytes(TERMIOS_BYTES))
    rows, columns, width, height = _WINDOW.unpack(fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(_WINDOW.size)))
    return {"settings": settings, "rows": rows, "columns": columns, "width": width, "height": height,
            "mode": stat.S_IMODE(node.st_mode), "uid": node.st_uid, "gid": node.st_gid}


def _restart(record: Terminal, ends: Sequence[TerminalEnd], making: Making) -> None:
    master = making.masters.fds[record.objref]
    for end in ends:
        fd = os.dup(master) if end.master else _open_slave(master, end.flags & os.O_ACCMODE)
        making.add(end.objref, fd, end.flags)
    if record.hung_up:
        os.close(_open_slave(master, os.O_RDWR))
    _set(record, record.index, master)
    fcntl.ioctl(master, termios.TIOCPKT, record.packets.to_bytes(4, "little"))
    if record.exclusive:
        fcntl.ioctl(master, termios.TIOCEXCL)
    fcntl.ioctl(master, _TIOCSPTLCK, record.locked.to_bytes(4, "little"))


def _restart_outside(record: OutsideTerminal, ends: Sequence[TerminalEnd], making: Making) -> None:
    wish = making.masters.stdio
    master = making.masters.fds.get(record.objref)
    for end in ends:
        fd = stdio.open_in_place(wish, end.flags) if master is None else _open_slave(master, end.flags & os.O_ACCMODE)
        making.add(end.objref, fd, end.flags)
    what = stdio.substitute(wish)
    if master is not None:
        index = _number(master, _TIOCGPTN)
        _set(record, index, master)
        what = slave_name(index)
    making.notes.append(f"{what} has the place of the terminal {slave_name(record.index)}")


def _set(record: Terminal | OutsideTerminal, index: int, master: int) -> None:
    fcntl.ioctl(master, stdio.TCSETS2, record.settings)
    with suppress(PermissionError):  # then it is its maker's, and so are we
        os.chown(slave_name(index), record.uid, record.gid)
    Path(slave_name(index)).chmod(record.mode)


def _open_slave(master: int, access: int) -> int:
    return fcntl.ioctl(master, _TIOCGPTPEER, access | os.O_NOCTTY | os.O_CLOEXEC)


def _open_any_master() -> int:
    return os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def _open_master(index: int) -> int:
    """Open masters until one has the number: the lowest that is free comes first."""
    spare: list[int] = []
    try:
        for _ in range(_OPENS_MAX):
            master = _open_any_master()
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
