"""Pages in blocks of zstd frames, many in one call without the GIL; the layout is told in ``crd.archive.pack``."""

from __future__ import annotations

import errno
from array import array
from itertools import pairwise
from typing import TYPE_CHECKING

from crd.errors import BlobCorrupt, NativeError
from crd.native.check import call
from crd.native.ffi import ffi, lib
from crd.native.memory import PAGE_BYTES
from crd.native.pages import HASH_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crd.native.pages import PageKey

BLOCK_PAGES = 64


class BlockCompressor:
    """Makes blocks of pages; for one thread."""

    def __init__(self, level: int, pages_max: int) -> None:
        """Use a level of zstd, 1 to 19, for up to so many pages at once."""
        self._zstd = ffi.gc(lib.crd_compressor_new(level), lib.crd_compressor_free)
        if not self._zstd:
            raise MemoryError
        self._room = memoryview(bytearray(max(lib.crd_blocks_room(pages_max, n) for n in (1, BLOCK_PAGES))))
        self._lengths = array("I", bytes(4 * (pages_max // BLOCK_PAGES + 1)))

    def blocks(self, pages: memoryview | bytes | bytearray, frame_pages: int) -> list[bytes]:
        """Return the blocks of some pages, each as it is stored, in frames of so many pages."""
        n_pages = memoryview(pages).nbytes // PAGE_BYTES
        call(lib.crd_blocks_make, self._zstd, ffi.from_buffer(pages), n_pages, frame_pages,
             ffi.from_buffer(self._room), len(self._room), ffi.from_buffer("uint32_t[]", self._lengths))
        ends = [0]
        for length in self._lengths[:-(-n_pages // BLOCK_PAGES)]:
            ends.append(ends[-1] + length)
        return [bytes(self._room[start:end]) for start, end in pairwise(ends)]


def blocks_of(numbers: array[int]) -> array[int]:
    """Return the numbers of the blocks that hold these pages, each once, in ascending order."""
    found = array("Q", bytes(8 * len(numbers)))
    n = lib.crd_blocks_of(ffi.from_buffer("uint64_t[]", numbers), len(numbers), ffi.from_buffer("uint64_t[]", found))
    return found[:n]


def open_pages(numbers: array[int], blocks: array[int], stored: Iterable[memoryview], pages: Iterable[int],
               key: PageKey, room: memoryview) -> bytearray:
    """Open pages by their numbers, and return the hash of each.

    Args:
        numbers: of the pages, in any order.
        blocks: the numbers of those that hold them, in ascending order.
        stored: each of these as it is stored.
        pages: how many each must hold.
        key: of the hashes.
        room: for the pages, as many as there are numbers.

    Raises:
        BlobCorrupt: one is missing or damaged.
        NativeError: ENOMEM.
    """
    if len(room) != len(numbers) * PAGE_BYTES:
        raise ValueError("as much room as pages, please")
    parts = [ffi.from_buffer("unsigned char[]", part) for part in stored]
    table = ffi.new("struct crd_block[]", list(zip(blocks, parts, map(len, parts), pages, strict=True)))
    hashes = bytearray(len(numbers) * HASH_BYTES)
    try:
        call(lib.crd_pages_open, ffi.from_buffer("uint64_t[]", numbers), len(numbers), table, len(blocks),
             ffi.from_buffer(key.derived), ffi.from_buffer(room), ffi.from_buffer(hashes))
    except NativeError as error:
        if error.errno == errno.EBADMSG:
            raise BlobCorrupt("a frame is damaged, or not of the size it must be") from error
        raise
    finally:
        parts.clear()  # see ``call``
    return hashes
