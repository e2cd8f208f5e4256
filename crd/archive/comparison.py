"""Which pages of two images differ: by their hashes, so that those of a lineage are compared without being read."""

from __future__ import annotations

from operator import ne
from struct import Struct
from typing import TYPE_CHECKING

from crd.archive.followed import heads_of
from crd.errors import ArchiveError
from crd.image.memory_difference import Memory, Run
from crd.image.profile import PAGE_BYTES, Pages, SharedPages
from crd.native.pages import HASH_BYTES, gathered_hashes

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator, Mapping

    from crd.native.pages import PageKey

_AT_ONCE = 4096
_CANNOT = "the memory of this image cannot be compared"
_HASH = Struct(f"{HASH_BYTES}s")
_OWNER_AND_COUNT, _RUN = Struct("<II"), Struct("<QQ")


class PageHashes:
    """Hashes of the pages of an image.  One thread at a time."""

    def __init__(self, numbers: array[int], hashes: Mapping[int, bytes], key: PageKey | None) -> None:
        """Know the pages of an image.

        Args:
            numbers: of each page in the order of the stream, as of its manifest.
            hashes: 16 bytes of each page of each pack, by the place of that.
            key: that they were made with; None: there is no page.
        """
        self.key = key
        self._numbers = numbers
        self._hashes = hashes
        self._first = 0
        self._gathered = bytearray()  # of those that were asked for last, and some that follow

    def of(self, first: int, n: int) -> bytearray:
        """Return the hashes of some pages; raises BlobCorrupt: there are not as many."""
        start = (first - self._first) * HASH_BYTES
        if not 0 <= start <= len(self._gathered) - n * HASH_BYTES:
            start, self._first = 0, first
            self._gathered = gathered_hashes(self._numbers[first:first + max(n, _AT_ONCE)], self._hashes)
        return self._gathered[start:start + n * HASH_BYTES]


def differing(before: PageHashes, after: PageHashes, n: int, first: int, second: int) -> int:
    """Return how many pages differ, of ``n`` from one page of each image on."""
    found = 0
    for done in range(0, n, _AT_ONCE):
        some = min(_AT_ONCE, n - done)
        ours, theirs = before.of(first + done, some), after.of(second + done, some)
        if ours != theirs:
            found += sum(map(ne, _HASH.iter_unpack(ours), _HASH.iter_unpack(theirs)))
    return found


class _Runs:
    """Where some pages of an image are, told again each time: there may be as many runs as pages."""

    def __init__(self) -> None:
        self._heads: list[tuple[memoryview, int, int]] = []

    def add(self, head: memoryview, first: int, n_pages: int) -> None:
        """Take in the beginning of a record, its first page, and how many it has."""
        self._heads.append((head, first, n_pages))

    def __iter__(self) -> Iterator[Run]:
        last_end = 0
        for head, first, n_pages in self._heads:
            at = first
            for address, pages in _runs(head):
                if address % PAGE_BYTES or address < last_end or not pages:
                    raise ArchiveError(f"{_CANNOT}: its page at {address:#x} is out of order")
                yield Run(address, pages, at)
                last_end, at = address + pages * PAGE_BYTES, at + pages
            if at - first != n_pages:
                raise ArchiveError(f"{_CANNOT}: its pages are not all told of")


def _runs(head: memoryview) -> Iterator[tuple[int, int]]:
    """Return address and pages of each run of PAGES, or of SHARED_PAGES, which are laid out alike."""
    if len(head) < _OWNER_AND_COUNT.size or len(head) != _OWNER_AND_COUNT.size + _RUN.size * (
            _OWNER_AND_COUNT.unpack_from(head)[1]):
        raise ArchiveError(f"{_CANNOT}: the runs of its pages are not where they should be")
    return _RUN.iter_unpack(head[_OWNER_AND_COUNT.size:])


def memory_of(literals: bytes) -> Memory:
    """Return where the pages of an image of crd's profile are, from the literals of its manifest.

    To go through its runs raises ArchiveError: these are not what an engine would write.
    """
    found: dict[int, dict[int, _Runs]] = {Pages.record_type: {}, SharedPages.record_type: {}}
    for kind, head, page, n_pages in heads_of(literals):
        if kind in found:
            owner = int.from_bytes(head[:4], "little")
            found[kind].setdefault(owner, _Runs()).add(head, page, n_pages)
    return Memory(found[Pages.record_type], found[SharedPages.record_type])
