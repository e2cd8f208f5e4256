"""Pipes, with and without a name: capacity, flags, and the data in flight."""

from __future__ import annotations

import fcntl
import os
import select
import stat
from typing import TYPE_CHECKING

from crd.engine.userspace.clash import clash
from crd.engine.userspace.fds import fifo
from crd.engine.userspace.fds.kind import Kind, Making
from crd.engine.userspace.fds.pipe_data import fill, in_flight, readable
from crd.image.objects import Pipe, PipeData, PipeEnd
from crd.target.paths import DELETED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crd.engine.api import Files
    from crd.engine.userspace.clash import Clash
    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.fds.table import FileTable
    from crd.engine.userspace.plan import Plan
    from crd.image.codec import Record

_F_GETPIPE_SZ = 1032


class Pipes(Kind):
    """A PIPE with its data for each pipe, and a PIPE_END for each description."""

    def recognises(self, one: Description) -> bool:
        """By the type of file; what is open by its name alone (O_PATH) is no end."""
        return stat.S_ISFIFO(one.stat.st_mode) and not one.flags & fifo.O_PATH

    def dump(self, found: Sequence[Description], table: FileTable) -> Iterator[Record]:
        """Copy what is in flight."""
        pipes: dict[tuple[int, int], list[Description]] = {}
        for one in found:
            pipes.setdefault((one.stat.st_dev, one.stat.st_ino), []).append(one)
        for ends in pipes.values():
            number = table.objects.new()
            yield from _dump_pipe(number, ends)
            for one in ends:
                yield PipeEnd(objref=one.objref, pipe=number, flags=one.flags, owner=one.owner,
                              hung_up=_is_hung_up(one))

    def clashes(self, plan: Plan, files: Files) -> Iterator[Clash]:  # noqa: ARG002
        """Look for the named ones."""
        for pipe in plan.of(Pipe):
            yield from clash(fifo.check, pipe)

    def make(self, making: Making) -> None:
        """Make each pipe, fill it, and describe its ends."""
        ends: dict[int, list[PipeEnd]] = {}
        for end in making.wanted(PipeEnd):
            ends.setdefault(end.pipe, []).append(end)
        for pipe in making.plan.of(Pipe):
            if pipe.objref in ends:
                restart = fifo.restart if pipe.path else _restart
                restart(pipe, ends[pipe.objref], making)
        for end in making.wanted(PipeEnd):
            making.set_flags(end.objref, end.flags)


def _dump_pipe(number: int, ends: Sequence[Description]) -> Iterator[Record]:
    first = ends[0]
    readers = [one for one in ends if one.flags & os.O_ACCMODE != os.O_WRONLY]
    packets = any(one.flags & os.O_DIRECT for one in ends if one.flags & os.O_ACCMODE != os.O_RDONLY)
    capacity = fcntl.fcntl(first.borrowed, _F_GETPIPE_SZ)
    chunks: list[bytes] = []
    if readers:
        chunks = in_flight(readers[0].borrowed, capacity)
    elif named(first) and readable(first.borrowed):  # whoever opens it to read next will get that
        reader = os.open(f"/proc/{first.pid}/fd/{first.fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        chunks = in_flight(reader, capacity)
        os.close(reader)
    deleted = named(first) and first.stat.st_nlink == 0
    yield Pipe(objref=number, inode=first.stat.st_ino, capacity_bytes=capacity, data_bytes=sum(map(len, chunks)),
               path=(first.link.removesuffix(DELETED) if deleted else first.link) if named(first) else "",
               device=first.stat.st_dev, mode=stat.S_IMODE(first.stat.st_mode), deleted=deleted)
    for chunk in chunks:
        yield PipeData(objref=number, packet=packets, data=chunk)


def named(one: Description) -> bool:
    """Whether it is open by a name: the links of pipes alone do not begin with a slash."""
    return one.link.startswith("/")


def _is_hung_up(one: Description) -> bool:
    """Whether a reader has seen a writer that is gone; one that has never seen any just waits."""
    poll = select.poll()
    poll.register(one.borrowed, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def _restart(pipe: Pipe, ends: Sequence[PipeEnd], making: Making) -> None:
    """Make a pipe with its data, and a descriptor of ours for each end's open file description."""
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fill(write_end, pipe, making.plan.parts(PipeData, pipe.objref))
        firsts = _firsts(ends)
        for end in ends:
            making.add(end.objref, _describe(end, read_end, write_end, first=end.objref in firsts))
    finally:
        os.close(read_end)
        os.close(write_end)


def _firsts(ends: Sequence[PipeEnd]) -> set[int]:
    """Return the first description of each side: the ones that pipe(2) itself made."""
    return {next(end.objref for end in ends if _access(end) == side) for side in {_access(end) for end in ends}
            if side != os.O_RDWR}


def _access(end: PipeEnd) -> int:
    return end.flags & os.O_ACCMODE


def _describe(end: PipeEnd, read_end: int, write_end: int, *, first: bool) -> int:
    """Return a descriptor of an end: a duplicate of what pipe(2) made, or another description of the same pipe."""
    side = read_end if _access(end) == os.O_RDONLY else write_end
    if first:
        return fcntl.fcntl(side, fcntl.F_DUPFD_CLOEXEC, 0)
    return os.open(f"/proc/self/fd/{side}", _access(end) | os.O_NONBLOCK | os.O_CLOEXEC)
