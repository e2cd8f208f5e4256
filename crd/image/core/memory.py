"""The memory of one task in a core: where each page of an image goes, and the segments that say so.

Pages are appended as they come: shared memory first, which any number of areas can refer to, then private memory.  What
is zero between them takes room in the core as long as that is not much, as a hole in the file that it is.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING, Protocol

from crd.image.core.elf import Segment
from crd.image.profile import PAGE_BYTES, VMA_ANONYMOUS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from crd.image.fields import BytesLike
    from crd.image.profile import Pages, SharedPages, Vma

HOLE_BYTES_MAX = 64 << 20
"""A larger hole divides a segment, so that memory of many TiB of which little is used makes no file of that size."""


class CoreFile(Protocol):
    """What a core is written to."""

    def write_at(self, offset: int, data: BytesLike) -> object:
        """Write all of it at an offset; what is not written reads as zeros."""
        ...


def is_dumped(vma: Vma) -> bool:
    """Whether a core may hold what is in an area: its program says that none may with MADV_DONTDUMP (madvise(2))."""
    return "dd" not in vma.flags.split()


class PageStore:
    """The pages in a core.

    Attributes:
        nothing: where no page is.
        end: of the core so far.
        bytes: how much of it pages are.
    """

    def __init__(self, core: CoreFile, start: int) -> None:
        """Append to the core from ``start`` on, which is aligned to pages.

        The first page stays empty for segments of which nothing is in the core: BFD looks for an ELF image where any
        segment begins, and takes that for the program.
        """
        self._core = core
        self.nothing = start
        self.end = start + PAGE_BYTES
        self.bytes = 0

    def append(self, data: memoryview, hole_bytes: int = 0) -> int:
        """Write pages behind a hole; return where in the core they are."""
        at = self.end + hole_bytes
        self._core.write_at(at, data)
        self.end = at + data.nbytes
        self.bytes += data.nbytes
        return at


class Extents:
    """Where in a core the pages of a shared object are: ascending ranges of it."""

    def __init__(self) -> None:
        self._starts = array("Q")
        self._ends = array("Q")
        self._places = array("Q")

    def add(self, start: int, data: memoryview, pages: PageStore) -> None:
        """Append pages that begin at ``start`` of the object, behind all that were before."""
        end = start + data.nbytes
        if self._ends:
            hole = start - self._ends[-1]
            if hole <= HOLE_BYTES_MAX and self._places[-1] + self._ends[-1] - self._starts[-1] == pages.end:
                pages.append(data, hole)
                self._ends[-1] = end
                return
        self._starts.append(start)
        self._ends.append(end)
        self._places.append(pages.append(data))

    def within(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield start, end and place of what there is from ``start`` to ``end`` of the object."""
        for index in range(max(0, bisect_right(self._starts, start) - 1), len(self._starts)):
            first, last = max(start, self._starts[index]), min(end, self._ends[index])
            if self._starts[index] >= end:
                return
            if first < last:
                yield first, last, self._places[index] + first - self._starts[index]


class Memory:
    """Takes the memory records of an image and tells the segments of one task, in ascending order.

    ``shared`` for all records of shared memory is followed by ``private`` for all of the task, and by ``rest``.
    """

    def __init__(self, vmas: Iterable[Vma], contents: Mapping[int, int], pages: PageStore) -> None:
        """Take the task's areas.

        Args:
            vmas: them, in ascending order.
            contents: by the objref of an area, that of the object in which all of what it maps is.
            pages: where pages go.
        """
        self._pages = pages
        self._contents = contents
        self._objects = {objref: Extents() for objref in contents.values()}
        self._vmas = iter(vmas)
        self._area: _Area | None = None

    def shared(self, record: SharedPages) -> None:
        """Keep pages of an object, if the task maps it."""
        if extents := self._objects.get(record.objref):
            for start, data in runs_of(record):
                extents.add(start, data, self._pages)

    def private(self, record: Pages) -> Iterator[Segment]:
        """Keep pages of the task; yield the segments that are complete now."""
        for start, data in runs_of(record):
            address, left = start, data
            while left:
                while self._area is None or self._area.end <= address:
                    yield from self._leave()
                    self._area = self._next_area()
                length = min(left.nbytes, self._area.end - address)
                yield from self._area.private(address, left[:length])
                address, left = address + length, left[length:]

    def rest(self) -> Iterator[Segment]:
        """Yield the segments that are left."""
        yield from self._leave()
        for vma in self._vmas:
            self._area = self._entered(vma)
            yield from self._leave()

    def _next_area(self) -> _Area:
        return self._entered(next(self._vmas))  # there is one: ``verify`` has seen to it

    def _entered(self, vma: Vma) -> _Area:
        beneath = self._objects.get(self._contents.get(vma.objref, 0)) if is_dumped(vma) else None
        return _Area(vma, beneath, self._pages)

    def _leave(self) -> Iterator[Segment]:
        if self._area:
            yield from self._area.finish()


class _Area:
    """An area of memory, of which pages are known up to some address."""

    def __init__(self, vma: Vma, beneath: Extents | None, pages: PageStore) -> None:
        """Begin with a segment at the area's start that has nothing in the core.

        Args:
            vma: the area.
            beneath: what is where the task has no page of its own; None: zeros, or what is in a file.
            pages: where pages go.
        """
        self.end = vma.end
        self._vma = vma
        self._beneath = beneath
        self._pages = pages
        self._is_dumped = is_dumped(vma)
        self._known = vma.start
        self._start = self._data_end = vma.start
        self._place = pages.nothing

    def private(self, address: int, data: memoryview) -> Iterator[Segment]:
        """Take pages of the task's own."""
        if not self._is_dumped:
            return
        yield from self._beneath_until(address)
        gap = address - self._data_end
        is_last = self._has_data and self._place + self._data_end - self._start == self._pages.end
        hole = gap if is_last and self._vma.kind == VMA_ANONYMOUS and gap <= HOLE_BYTES_MAX else 0
        yield from self._piece(address, address + data.nbytes, self._pages.append(data, hole), hole)
        self._known = address + data.nbytes

    def finish(self) -> Iterator[Segment]:
        """Yield what is left."""
        yield from self._beneath_until(self.end)
        yield self._segment(self.end)

    def _beneath_until(self, address: int) -> Iterator[Segment]:
        if self._beneath:
            moved = self._vma.start - self._vma.offset
            for first, last, place in self._beneath.within(self._known - moved, address - moved):
                yield from self._piece(first + moved, last + moved, place)

    def _piece(self, start: int, end: int, place: int, hole: int = 0) -> Iterator[Segment]:
        """Go on with the segment if the piece follows it in memory as in the core, hole or none, else begin another."""
        follows = start == self._data_end + hole and place - self._place == start - self._start
        if not self._has_data or not follows:
            if start > self._start:
                yield self._segment(start)
            self._start, self._place = start, place
        self._data_end = end

    @property
    def _has_data(self) -> bool:
        return self._data_end > self._start

    def _segment(self, end: int) -> Segment:
        return Segment(self._start, end - self._start, self._place, self._data_end - self._start, self._vma.protection)


def runs_of(record: Pages | SharedPages) -> Iterator[tuple[int, memoryview]]:
    """Yield address and pages of each run."""
    at = 0
    for run in record.runs:
        yield run.address, record.data[at:(at := at + run.pages * PAGE_BYTES)]
