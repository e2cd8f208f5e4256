"""Blocks of a pack, made of pages; the layout is told in ``crd.archive.pack``."""

from __future__ import annotations

import struct

import zstandard

from crd.archive.pack import BLOCK_BYTES
from crd.native.memory import PAGE_BYTES


class BlockCompressor:
    """Makes blocks; for one thread.

    The zstd of the ``zstandard`` package is not the host's: 1.5.7 takes 12 % less time for a Python heap than the 1.5.4
    of Debian 12.
    """

    def __init__(self, level: int) -> None:
        """Use a level of zstd, 1 to 19."""
        self._zstd = zstandard.ZstdCompressor(level=level)

    def blocks(self, pages: memoryview, frame_pages: int) -> list[bytes]:
        """Return the blocks of some pages, each as it is stored, in frames of so many pages; without the GIL."""
        return [self._block(pages[start:start + BLOCK_BYTES], frame_pages * PAGE_BYTES)
                for start in range(0, len(pages), BLOCK_BYTES)]

    def _block(self, pages: memoryview, frame_bytes: int) -> bytes:
        frames = [self._zstd.compress(pages[start:start + frame_bytes]) for start in range(0, len(pages), frame_bytes)]
        return b"".join((struct.pack(f"<{1 + len(frames)}I", frame_bytes, *map(len, frames)), *frames))
