"""Pipes with both ends inside the image: capacity, flags, and the data in flight."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from crd.engine.userspace.fds.kind import Kind, Making
from crd.errors import NativeError, RestartUnsupported
from crd.image.objects import Pipe, PipeData, PipeEnd
from crd.native.syscall import syscall

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.fds.table import FileTable
    from crd.image.codec import Record

_F_SETPIPE_SZ, _F_GETPIPE_SZ = 1031, 1032
_TEE, _SPLICE_F_NONBLOCK = 276, 2
_SPLICE_BYTES = 64 << 10
_DEFAULT_BYTES = 64 << 10


class Pipes(Kind):
    """A PIPE with its data for each pipe, and a PIPE_END for each description."""

    def recognises(self, one: Description) -> bool:
        """The links of pipes alone do not begin with a slash."""
        return one.link.startswith("pipe:[")

    def dump(self, found: Sequence[Description], table: FileTable) -> Iterator[Record]:
        """Copy what is in flight."""
        pipes: dict[int, list[Description]] = {}
        for one in found:
            pipes.setdefault(one.stat.st_ino, []).append(one)
        for inode, ends in pipes.items():
            number = table.objects.new()
            pipe, data = _dump_pipe(number, inode, ends)
            yield pipe
            yield from data
            for one in ends:
                yield PipeEnd(objref=one.objref, pipe=number, flags=one.flags, owner=one.owner)

    def make(self, making: Making) -> None:
        """Make each pipe, fill it, and describe its ends."""
        ends: dict[int, list[PipeEnd]] = {}
        for end in making.wanted(PipeEnd):
            ends.setdefault(end.pipe, []).append(end)
        for pipe in making.plan.of(Pipe):
            if pipe.objref in ends:
                _restart(pipe, ends[pipe.objref], making)


def _dump_pipe(number: int, inode: int, ends: Sequence[Description]) -> tuple[Pipe, list[PipeData]]:
    readers = [one for one in ends if one.flags & os.O_ACCMODE == os.O_RDONLY]
    packets = any(one.flags & os.O_DIRECT for one in ends if one not in readers)
    if readers:
        return dump_data(number, inode, readers[0].borrowed, packets=packets)
    return Pipe(objref=number, inode=inode, capacity_bytes=_DEFAULT_BYTES, data_bytes=0), []


def dump_data(objref: int, inode: int, read_end: int, *, packets: bool) -> tuple[Pipe, list[PipeData]]:
    """Copy what is in a pipe without taking anything out (tee(2)).

    Args:
        objref: of the pipe.
        inode: its number.
        read_end: a duplicate of an end that may be read.
        packets: whether a write end is in packet mode now.
    """
    capacity = fcntl.fcntl(read_end, _F_GETPIPE_SZ)
    ours_read, ours_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.fcntl(ours_write, _F_SETPIPE_SZ, capacity)
        with suppress(NativeError):  # EAGAIN: it is empty
            syscall(_TEE, read_end, ours_write, capacity, _SPLICE_F_NONBLOCK)
        chunks = []
        with suppress(BlockingIOError):
            while chunk := os.read(ours_read, _SPLICE_BYTES):
                chunks.append(chunk)
    finally:
        os.close(ours_read)
        os.close(ours_write)
    pipe = Pipe(objref=objref, inode=inode, capacity_bytes=capacity, data_bytes=sum(map(len, chunks)))
    return pipe, [PipeData(objref=objref, packet=packets, data=chunk) for chunk in chunks]


def _restart(pipe: Pipe, ends: Sequence[PipeEnd], making: Making) -> None:
    """Make a pipe with its data, and a descriptor of ours for each end's open file description.

    Raises:
        RestartUnsupported: the capacity exceeds what an unprivileged pipe may have.
    """
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        try:
            fcntl.fcntl(write_end, _F_SETPIPE_SZ, pipe.capacity_bytes)
        except OSError as error:
            raise RestartUnsupported(f"a pipe of {pipe.capacity_bytes} bytes: {error.strerror}",
                                     hint="Raise /proc/sys/fs/pipe-max-size.") from error
        _fill(write_end, making.plan.parts(PipeData, pipe.objref))
        firsts = _firsts(ends)
        for end in ends:
            making.add(end.objref, _describe(end, read_end, write_end, first=end.objref in firsts))
        for end in ends:
            fcntl.fcntl(making.ours[end.objref], fcntl.F_SETFL, end.flags)
    finally:
        os.close(read_end)
        os.close(write_end)


def _firsts(ends: Sequence[PipeEnd]) -> set[int]:
    """Return the first description of each side: the ones that pipe(2) itself made."""
    return {next(end.objref for end in ends if _reads(end) is side) for side in {_reads(end) for end in ends}}


def _reads(end: PipeEnd) -> bool:
    return end.flags & os.O_ACCMODE == os.O_RDONLY


def _describe(end: PipeEnd, read_end: int, write_end: int, *, first: bool) -> int:
    """Return a descriptor of an end: a duplicate of what pipe(2) made, or another description of the same pipe."""
    side = read_end if _reads(end) else write_end
    if first:
        return fcntl.fcntl(side, fcntl.F_DUPFD_CLOEXEC, 0)
    return os.open(f"/proc/self/fd/{side}", end.flags & os.O_ACCMODE | os.O_NONBLOCK | os.O_CLOEXEC)


def _fill(write_end: int, data: Sequence[PipeData]) -> None:
    for chunk in data:
        fcntl.fcntl(write_end, fcntl.F_SETFL, os.O_NONBLOCK | (os.O_DIRECT if chunk.packet else 0))
        if os.write(write_end, chunk.data) != len(chunk.data):
            raise RestartUnsupported("the data in flight do not fit the pipe")
