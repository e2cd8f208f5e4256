"""The snapshot child hands its pages over itself: it puts them into a pipe by reference (vmsplice(2)).

So no byte is copied until whoever reads the image does, and the child looks by itself which pages hold nothing.  A page
that the child may not read (PROT_NONE) is not for this: ``PagePump.private`` reads those.
"""

from __future__ import annotations

import os
import select
import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crd.engine.userspace.mem.pages import batches
from crd.errors import NativeError
from crd.image.profile import PAGE_BYTES, PageRun, Pages
from crd.native.stream import widen_pipe
from crd.native.syscall import NR, pidfd_getfd

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from crd.engine.stream import DescriptorSink
    from crd.engine.userspace.mem.runs import Run
    from crd.engine.userspace.snapshot import Snapshot
    from crd.image.writer import ImageWriter
    from crd.native.batch import Running

_WINDOW_PAGES = 32 << 10
_WINDOW_RUNS, _BATCH_RUNS = 512, 400
"""Both together must fit the table of a batch."""
_LOOK_SECONDS = 0.2


@contextmanager
def opened(child: Snapshot, writer: ImageWriter, sink: DescriptorSink) -> Iterator[Handover | None]:
    """Have the child make a pipe, for as long as the context lasts; None if it may not."""
    ends = child.batch.data(bytes(8))
    child.batch.call(NR.PIPE2, ends, 0)
    try:
        child.batch.run(child.pid)
    except NativeError:
        yield None
        return
    read_end, write_end = struct.unpack("<ii", child.batch.read(ends, 8))
    pidfd = os.pidfd_open(child.pid)
    try:
        ours = pidfd_getfd(pidfd, read_end)
    finally:
        os.close(pidfd)
    widen_pipe(ours)
    try:
        yield Handover(child, write_end, ours, writer, sink)
    finally:
        os.close(ours)


class Handover:
    """A pipe out of the snapshot child."""

    def __init__(self, child: Snapshot, write_end: int, read_end: int, writer: ImageWriter,
                 sink: DescriptorSink) -> None:
        """Move pages of the child into an image; ``opened`` makes these."""
        self._pid = child.pid
        self._batch = child.batch
        self._write_end = write_end
        self._read_end = read_end
        self._writer = writer
        self._sink = sink
    def private(self, pid: int, runs: Sequence[Run]) -> int:
        """Write pages of the process ``pid`` that its child may read, without those that hold only zeros.

        Returns:
            How many bytes were looked at.

        Raises:
            NativeError: the child ended, or could not read a page; what was written is no image.
            ImageSinkClosed, ImageSinkFull: see ``DescriptorSink``.
        """
        windows = list(_windows(runs))
        found = self._look(windows[0] if windows else [])
        self._batch.run(self._pid)
        for window, following in zip(windows, [*windows[1:], []][:len(windows)], strict=True):
            filled = list(_filled(window, self._batch.read(found, sum(length for _, length in window) // PAGE_BYTES)))
            for at in range(0, max(1, len(filled)), _BATCH_RUNS):
                part = filled[at:at + _BATCH_RUNS]
                for run in part:
                    self._batch.hand_over(self._write_end, *run)
                if part[-1:] == filled[-1:]:
                    found = self._look(following)  # while we move what is in the pipe
                running = self._batch.start(self._pid)
                for record in batches(part):
                    self._move(pid, record, running)
                running.finish()
        return sum(length for _, length in runs)

    def _look(self, window: Sequence[Run]) -> int:
        """Have the child look through a window; return the address of what it will find."""
        found = at = self._batch.data(bytes(sum(length for _, length in window) // PAGE_BYTES), align=1)
        for start, length in window:
            self._batch.look(start, length // PAGE_BYTES, at)
            at += length // PAGE_BYTES
        return found

    def _move(self, pid: int, record: list[Run], running: Running) -> None:
        length = sum(part for _, part in record)
        pages = Pages(pid=pid, runs=[PageRun(address=at, pages=part // PAGE_BYTES) for at, part in record])
        self._writer.write_bulk_from(pages, length, lambda: self._splice(length, running))

    def _splice(self, length: int, running: Running) -> None:
        poll = select.poll()
        poll.register(self._read_end, select.POLLIN)
        while length:
            if not poll.poll(_LOOK_SECONDS * 1000) and running.has_ended(time.monotonic()) and not poll.poll(0):
                running.finish()  # says why
            length -= self._sink.splice(self._read_end, length)


def _windows(runs: Iterable[Run]) -> Iterator[list[Run]]:
    """Cut runs into windows that the child can look through in one batch."""
    window: list[Run] = []
    room = _WINDOW_PAGES
    for start, length in runs:
        at = start
        while at < start + length:
            part = min(start + length - at, room * PAGE_BYTES)
            window.append((at, part))
            at, room = at + part, room - part // PAGE_BYTES
            if not room or len(window) == _WINDOW_RUNS:
                yield window
                window, room = [], _WINDOW_PAGES
    if window:
        yield window


def _filled(window: Sequence[Run], found: bytes) -> Iterator[Run]:
    """Return the runs of pages for which there is a 1."""
    base = 0
    for start, length in window:
        end = base + length // PAGE_BYTES
        at = base
        while (first := found.find(1, at, end)) >= 0:
            after = found.find(0, first, end)
            at = end if after < 0 else after
            yield start + (first - base) * PAGE_BYTES, (at - first) * PAGE_BYTES
        base = end
