"""Pages in blocks of frames."""

from __future__ import annotations

import random
from array import array
from contextlib import suppress

import pytest

from crd.archive.compressor import BlockCompressor
from crd.errors import BlobCorrupt
from crd.native.frames import BLOCK_PAGES, blocks_of, open_pages
from crd.native.memory import PAGE_BYTES
from crd.native.pages import PageKey


def content(n_pages: int) -> bytes:
    """Return pages of which every third is noise."""
    chance = random.Random(n_pages)
    return b"".join(chance.randbytes(PAGE_BYTES) if at % 3 else bytes([at % 251]) * PAGE_BYTES for at in range(n_pages))


def opened(numbers: array[int], stored: dict[int, bytes], n_pages: int) -> bytes:
    """Open pages of packs that have the same blocks, in the order of their numbers."""
    blocks = blocks_of(numbers)
    room, key = bytearray(len(numbers) * PAGE_BYTES), PageKey(bytes(32))
    hashes = open_pages(numbers, blocks, (memoryview(stored[number & 0xFFFFFFFF]) for number in blocks),
                        (min(BLOCK_PAGES, n_pages - (number & 0xFFFFFFFF) * BLOCK_PAGES) for number in blocks), key,
                        memoryview(room))
    assert hashes == key.hashes(room)
    return bytes(room)


@pytest.mark.parametrize("frame_pages", [1, 4, 64])
@pytest.mark.parametrize("n_pages", [1, 3, 64, 65, 200, 256])
def test_pages_come_out_in_any_order_as_they_went_in(n_pages: int, frame_pages: int) -> None:
    pages, chance = content(n_pages), random.Random(1)
    stored = dict(enumerate(BlockCompressor(1).blocks(memoryview(pages), frame_pages)))
    assert len(stored) == -(-n_pages // BLOCK_PAGES)
    straight = array("Q", range(n_pages))
    assert opened(straight, stored, n_pages) == pages
    mixed = array("Q", (chance.randrange(3) << 32 | chance.randrange(n_pages) for _ in range(300)))
    assert opened(mixed, stored, n_pages) == b"".join(
        pages[(number & 0xFFFFFFFF) * PAGE_BYTES:][:PAGE_BYTES] for number in mixed)


def test_blocks_are_told_once_and_in_order() -> None:
    assert list(blocks_of(array("Q", [130, 5, 131, 1 << 32, 6, 64, (1 << 32) + 63, 5]))) == [0, 1, 2, 1 << 32]
    assert list(blocks_of(array("Q"))) == []


@pytest.mark.parametrize("at", [0, 3, 4, 8, 20, 60, -1])
def test_a_damaged_block_is_refused_or_gives_other_pages(at: int) -> None:
    [stored] = BlockCompressor(1).blocks(memoryview(content(10)), 4)
    damaged = bytearray(stored)
    damaged[at] ^= 0x41
    with suppress(BlobCorrupt):
        assert opened(array("Q", range(10)), {0: bytes(damaged)}, 10) != content(10)


def test_every_truncation_is_refused() -> None:
    [stored] = BlockCompressor(1).blocks(memoryview(b"ab" * (5 * PAGE_BYTES)), 4)
    for length in range(len(stored)):
        with pytest.raises(BlobCorrupt):
            opened(array("Q", [9]), {0: stored[:length]}, 10)


def test_a_block_that_is_missing_is_refused() -> None:
    [stored] = BlockCompressor(1).blocks(memoryview(content(10)), 4)
    with pytest.raises(BlobCorrupt):
        open_pages(array("Q", [70]), array("Q", [0]), [memoryview(stored)], [10], PageKey(),
                   memoryview(bytearray(PAGE_BYTES)))
    with pytest.raises(BlobCorrupt):
        opened(array("Q", [10]), {0: stored}, 10)
