"""Pages out of blocks of zstd frames, many in one call without the GIL; the layout is told in ``crd.archive.pack``."""

from __future__ import annotations

import errno
from array import array
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
