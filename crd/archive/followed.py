"""The image that a new one follows: which pages it has, and where they were in the memory of its processes."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from crd.errors import ArchiveError, ImageError
from crd.image.framing import FRAME
from crd.image.profile import PAGE_BYTES, PAGES_PER_RECORD_MAX, PageRun, Pages
from crd.image.since import KEPT_RUNS_MAX, RUNS_PER_RECORD_MAX, PagesSince
from crd.native.pages import HASH_BYTES

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator, Sequence

Stretch = tuple[int, int | None]
"""Pages one after the other: how many, and which of the followed image's the first is (None: they are told)."""


def heads_of(literals: bytes | bytearray) -> Iterator[tuple[int, memoryview, int, int]]:
    """Yield of each record of an image its type, what of its payload is literal, its first page, and how many it has.

    Args:
        literals: of the image (``crd.archive.manifest``).
    """
    at = page = 0
    while at + FRAME.size <= len(literals):
        kind, length = FRAME.unpack_from(literals, at)
        end, n_pages = at + FRAME.size + length % PAGE_BYTES, length // PAGE_BYTES
        yield kind, memoryview(literals)[at + FRAME.size:end], page, n_pages
        at, page = end, page + n_pages


class MemoryMap:
    """Where the pages of a stream were in memory."""

    def __init__(self, literals: bytes | bytearray) -> None:
        """Find all PAGES among the literals of an image (``crd.archive.manifest``).

        Raises:
            ArchiveError: what is before their pages is longer than a page; no engine of this version writes such.
        """
        self._runs: dict[int, list[tuple[int, int, int]]] = {}
        for kind, head, page, n_pages in heads_of(literals):
            if kind == Pages.record_type:
                self._add(head, page, n_pages)

    def _add(self, head: memoryview, page: int, n_pages: int) -> None:
        try:
            record = Pages.decode(head)
        except ImageError as error:
            raise ArchiveError(f"no image can follow this one: {error.message}") from error
        if record.data.nbytes or sum(run.pages for run in record.runs) != n_pages:
            raise ArchiveError("no image can follow this one: its pages are not all told of")
        runs = self._runs.setdefault(record.pid, [])
        for run in record.runs:
            runs.append((run.address, run.pages, page))
            page += run.pages

    def within(self, pid: int, run: PageRun) -> Iterator[tuple[int, int, int]]:
        """Yield address, number of pages, and first page in the stream, of what a process had in a run."""
        runs, end = self._runs.get(pid, []), run.address + run.pages * PAGE_BYTES
        for at, pages, page in runs[max(0, bisect_right(runs, (run.address,)) - 1):]:
            if at >= end:
                return
            start, stop = max(at, run.address), min(at + pages * PAGE_BYTES, end)
            if start < stop:
                yield start, (stop - start) // PAGE_BYTES, page + (start - at) // PAGE_BYTES


@dataclass(frozen=True, slots=True)
class Followed:
    """The image that a new one follows.

    Attributes:
        memory: of its processes.
        numbers: of its pages, as the new image numbers them.
        hashes: 16 bytes of each.
    """

    memory: MemoryMap
    numbers: array[int]
    hashes: bytes | bytearray

    def pages(self, first: int, n: int) -> tuple[array[int], bytes | bytearray]:
        """Return numbers and hashes of pages of the stream."""
        return self.numbers[first:first + n], self.hashes[first * HASH_BYTES:(first + n) * HASH_BYTES]

    def expanded(self, record: PagesSince) -> Iterator[tuple[bytes, list[Stretch]]]:
        """Make PAGES records of one that tells only what has changed.

        Yields:
            What comes before the pages, header included, and the pages.

        Raises:
            ArchiveError: the record is not what an engine would write.
        """
        runs: list[PageRun] = []
        stretches: list[Stretch] = []
        room = PAGES_PER_RECORD_MAX
        for address, length, first in self._told(record):
            at, left, page = address, length, first
            while left:
                pages = min(left, room)
                if runs and runs[-1].address + runs[-1].pages * PAGE_BYTES == at:
                    runs[-1].pages += pages
                else:
                    runs.append(PageRun(address=at, pages=pages))
                stretches.append((pages, page))
                at, left, room = at + pages * PAGE_BYTES, left - pages, room - pages
                page = page if page is None else page + pages
                if not room or len(runs) == RUNS_PER_RECORD_MAX:
                    yield _head(record.pid, runs), stretches
                    runs, stretches, room = [], [], PAGES_PER_RECORD_MAX
        if runs:
            yield _head(record.pid, runs), stretches

    def _told(self, record: PagesSince) -> Iterator[tuple[int, int, int | None]]:
        """Yield address, number of pages, and page of this image or None, of all that there is, in ascending order."""
        _check(record)
        told = chain(((run, True) for run in record.kept), ((run, False) for run in record.runs))
        last_end = 0
        for run, is_kept in sorted(told, key=lambda part: part[0].address):
            if run.address < last_end:
                raise ArchiveError(f"the engine told twice of the page at {run.address:#x}")
            last_end = run.address + run.pages * PAGE_BYTES
            yield from self.memory.within(record.pid, run) if is_kept else [(run.address, run.pages, None)]


def _check(record: PagesSince) -> None:
    if (len(record.kept) > KEPT_RUNS_MAX or len(record.runs) > RUNS_PER_RECORD_MAX
            or sum(run.pages for run in record.runs) > PAGES_PER_RECORD_MAX
            or not all(_is_possible(run) for run in chain(record.kept, record.runs))):
        raise ArchiveError("the engine told of pages that cannot be")


def _is_possible(run: PageRun) -> bool:
    return bool(run.pages) and run.address % PAGE_BYTES == 0 and run.address + run.pages * PAGE_BYTES <= 1 << 64


def _head(pid: int, runs: Sequence[PageRun]) -> bytes:
    payload = Pages(pid=pid, runs=runs).encode()
    return FRAME.pack(Pages.record_type, len(payload) + sum(run.pages for run in runs) * PAGE_BYTES) + payload
