"""The content of memory: which pages are the process's own, and how they get into the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.engine.userspace.mem.layout import is_kernel_area
from crd.engine.userspace.mem.runs import joined
from crd.engine.userspace.mem.shared import room
from crd.errors import NativeError
from crd.image.profile import PAGE_BYTES, PAGES_PER_RECORD_MAX, PageRun, Pages, SharedPages
from crd.image.since import RUNS_PER_RECORD_MAX, PagesSince
from crd.native.memory import Memory, nonzero_pages, process_read_runs
from crd.native.pagemap import PageMap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from crd.engine.userspace.mem.handover import Handover
    from crd.engine.userspace.mem.runs import Run
    from crd.engine.userspace.mem.shared import Copied, Reserve
    from crd.image.writer import ImageWriter
    from crd.target.procfs import MapEntry

_RECORD_BYTES = PAGES_PER_RECORD_MAX * PAGE_BYTES
_BUFFERS = 4
"""Buffers in turn: after vmsplice(2) a pipe holds up to 1 MiB of pages by reference."""


def private_runs(pid: int, entries: Sequence[MapEntry]) -> list[Run]:
    """Return the pages of private memory that are the process's own, in ascending runs."""
    areas = joined((entry.start, entry.end - entry.start) for entry in entries
                   if not entry.shared and not is_kernel_area(entry))
    with PageMap(pid) as pagemap:
        return pagemap.own_pages(areas)


def copy_little(memory: Memory, areas: Sequence[Run], reserve: Reserve) -> tuple[list[Run], list[Run], memoryview]:
    """Copy the pages of private areas that are the process's own while it is stopped.

    Its relatives go on to share them copy-on-write.

    Returns:
        Their runs, those of guard pages, and the content of the former, packed.
    """
    with PageMap(memory.pid) as pagemap:
        runs, guards = pagemap.own_and_guard_pages(areas)
    return runs, guards, copy(memory, runs, reserve, just_written=False)


def batches(runs: Iterable[Run]) -> Iterator[list[Run]]:
    """Cut runs into batches of at most one record's pages."""
    batch: list[Run] = []
    room = _RECORD_BYTES
    for start, length in runs:
        at = start
        while at < start + length:
            part = min(start + length - at, room)
            batch.append((at, part))
            at, room = at + part, room - part
            if not room or len(batch) == RUNS_PER_RECORD_MAX:
                yield batch
                batch, room = [], _RECORD_BYTES
    if batch:
        yield batch


class PagePump:
    """Moves pages into an image in records of up to 1 MiB, without those that hold only zeros.

    Attributes:
        writer: of the image.
        memory_bytes: pages read so far.
    """

    def __init__(self, writer: ImageWriter) -> None:
        """Pump into an image."""
        self.writer = writer
        self._buffers = [room(_RECORD_BYTES) for _ in range(_BUFFERS)]
        self._turn = 0
        self.memory_bytes = 0

    def given(self, pid: int, memory: Memory, runs: Sequence[Run], child: Handover | None) -> None:
        """Write pages that a snapshot child can hand over itself, or through ``memory`` if it cannot."""
        if child:
            self.memory_bytes += child.private(pid, runs)
        else:
            self.private(pid, memory, runs)

    def private(self, pid: int, memory: Memory, runs: Iterable[Run]) -> None:
        """Write pages of a process, read through ``memory`` (its own, or its snapshot's)."""
        for batch in batches(runs):
            self._pump(batch, memory.read_runs, lambda found: Pages(pid=pid, runs=found))

    def copied(self, pid: int, runs: Sequence[Run], content: memoryview) -> None:
        """Write pages that were copied while the process was stopped, packed one after the other."""
        read = _reader(content)
        for batch in batches(runs):
            self._pump(batch, read, lambda found: Pages(pid=pid, runs=found))

    def shared(self, objref: int, copied: Copied) -> None:
        """Write pages of a shared object that were copied while the process was stopped."""
        read = _reader(copied.content)
        for batch in batches(copied.runs):
            self._pump(batch, read, lambda found: SharedPages(objref=objref, runs=found))

    def changed(self, told: PagesSince, read: Callable[[list[Run], memoryview], None]) -> None:
        """Write what has changed of some memory: pages that hold only zeros now are told of in no way."""
        batch = [(run.address, run.pages * PAGE_BYTES) for run in told.runs]
        runs, parts = self._filled(batch, read)
        record = PagesSince(pid=told.pid, kept=told.kept, runs=runs)
        if runs:
            self.writer.write_bulk(record, *parts)
        elif told.kept:
            self.writer.write(record)

    def _pump(self, batch: list[Run], read: Callable[[list[Run], memoryview], None],
              record: Callable[[list[PageRun]], Pages | SharedPages]) -> None:
        runs, parts = self._filled(batch, read)
        if runs:
            self.writer.write_bulk(record(runs), *parts)

    def _filled(self, batch: list[Run],
                read: Callable[[list[Run], memoryview], None]) -> tuple[list[PageRun], list[memoryview]]:
        """Read pages into the next buffer; return the runs of those that hold anything, and their bytes."""
        length = sum(part for _, part in batch)
        buffer = self._buffers[self._turn][:length]
        self._turn = (self._turn + 1) % _BUFFERS
        read(batch, buffer)
        self.memory_bytes += length
        return selected(batch, buffer, nonzero_pages(buffer))


def _reader(content: memoryview) -> Callable[[list[Run], memoryview], None]:
    """Return what reads packed runs one after the other."""
    at = 0

    def read(_batch: list[Run], buffer: memoryview) -> None:
        nonlocal at
        buffer[:] = content[at:at + buffer.nbytes]
        at += buffer.nbytes

    return read


def selected(batch: Sequence[Run], buffer: memoryview,
             chosen: Sequence[bool]) -> tuple[list[PageRun], list[memoryview]]:
    """Return the runs of those pages of a batch that were chosen, and their bytes."""
    if all(chosen):
        return [PageRun(address=address, pages=length // PAGE_BYTES) for address, length in batch], [buffer]
    runs: list[PageRun] = []
    parts: list[memoryview] = []
    page = 0
    for address, length in batch:
        n = length // PAGE_BYTES
        first = None
        for index in range(n + 1):
            wanted = index < n and chosen[page + index]
            if wanted and first is None:
                first = index
            elif not wanted and first is not None:
                runs.append(PageRun(address=address + first * PAGE_BYTES, pages=index - first))
                parts.append(buffer[(page + first) * PAGE_BYTES:(page + index) * PAGE_BYTES])
                first = None
        page += n
    return runs, parts


def copy(memory: Memory, runs: Sequence[Run], reserve: Reserve, *, just_written: bool) -> memoryview:
    """Copy runs of the process itself.

    Args:
        memory: of the process.
        runs: of it.
        reserve: where they go.
        just_written: so hardly a page is shared with a relative, and they may be read the quick way.

    Raises:
        EngineError: it needs as much memory of ours, which is not there.
    """
    content = reserve.take(sum(length for _, length in runs))
    if not runs:
        return content
    if not just_written:
        memory.read_runs(runs, content)
        return content
    try:
        process_read_runs(memory.pid, runs, content)
    except NativeError:  # PROT_NONE, or a kernel without process_vm_readv
        memory.read_runs(runs, content)
    return content
