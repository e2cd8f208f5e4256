"""Pages by their content: hashes of 16 bytes, and an index of the pages that are known."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from crd.native.check import call
from crd.native.ffi import ffi, lib
from crd.native.memory import PAGE_BYTES

HASH_BYTES = 16
INDEX_PAGES = 1 << 20
"""4 GiB of pages, in 50 MiB."""


def page_hashes(pages: memoryview | bytes | bytearray) -> bytearray:
    """Return the first 16 bytes of the BLAKE3 of each whole page, one after the other."""
    n = memoryview(pages).nbytes // PAGE_BYTES
    hashes = bytearray(n * HASH_BYTES)
    lib.crd_pages_hash(ffi.from_buffer(pages), n, ffi.from_buffer(hashes))
    return hashes


@dataclass(frozen=True, slots=True)
class Indexed:
    """What an index says of pages, in their order.

    Attributes:
        hashes: 16 bytes each.
        numbers: u64 each.
        fresh: 1 for a page that was not known, else 0.
        n_fresh: how many were not.
    """

    hashes: bytearray
    numbers: array[int]
    fresh: bytearray
    n_fresh: int


class PageIndex:
    """Numbers of pages by their content: 50 to 100 bytes a page.  One thread at a time; the GIL is released."""

    def __init__(self, limit: int = INDEX_PAGES) -> None:
        """Know no page, and never more than that many: of those that come later, equal ones go unseen."""
        self._index = ffi.gc(lib.crd_page_index_new(limit), lib.crd_page_index_free)
        if not self._index:
            raise MemoryError

    def learn(self, hashes: bytes | bytearray | memoryview, numbers: array[int]) -> None:
        """Take in pages by their hashes; of equal ones the first counts.

        Args:
            hashes: 16 bytes a page.
            numbers: of each, u64.

        Raises:
            NativeError: ENOMEM.
        """
        if memoryview(hashes).nbytes != len(numbers) * HASH_BYTES:
            raise ValueError("as many hashes as numbers, please")
        call(lib.crd_page_index_learn, self._index, ffi.from_buffer(hashes),
             ffi.from_buffer("uint64_t[]", numbers), len(numbers))

    def add(self, pages: memoryview | bytes | bytearray, next_number: int) -> Indexed:
        """Hash pages and look them up; those that are not known get the next numbers.

        Raises:
            NativeError: ENOMEM.
        """
        n = memoryview(pages).nbytes // PAGE_BYTES
        hashes, numbers, fresh = bytearray(n * HASH_BYTES), array("Q", bytes(8 * n)), bytearray(n)
        n_fresh = ffi.new("size_t *")
        call(lib.crd_page_index_add, self._index, ffi.from_buffer(pages), n, next_number, ffi.from_buffer(hashes),
             ffi.from_buffer("uint64_t[]", numbers), ffi.from_buffer(fresh), n_fresh)
        return Indexed(hashes, numbers, fresh, n_fresh[0])
