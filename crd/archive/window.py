"""A stretch of an image's stream, and how its bytes come out of blocks of packs."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from crd.archive.manifest import PACK_SHIFT
from crd.archive.pack import BLOCK_PAGES, decompressed
from crd.errors import BlobCorrupt
from crd.native.memory import PAGE_BYTES
from crd.native.pages import HASH_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from crd.archive.manifest import Manifest
    from crd.archive.pack import PackTable

    Blocks = dict[tuple[int, int], memoryview]
    """What is stored of a block, by the place of its pack in the manifest and its number there."""

WINDOW_PAGES = 4096
_PAGE_MASK = (1 << PACK_SHIFT) - 1


@dataclass(slots=True)
class Window:
    """Up to WINDOW_PAGES pages of a stream, and the literals between them.

    Attributes:
        pieces: literals, and how many pages follow.
        runs: neighbouring pages: place of their pack in the manifest, number of the first, how many.
        n_pages: how many they are.
    """

    pieces: list[tuple[memoryview, int]] = field(default_factory=list)
    runs: list[tuple[int, int, int]] = field(default_factory=list)
    n_pages: int = 0

    @property
    def blocks(self) -> set[tuple[int, int]]:
        """The blocks that hold its pages: place of the pack, number of the block."""
        return {(place, block) for place, first, n in self.runs
                for block in range(first // BLOCK_PAGES, (first + n - 1) // BLOCK_PAGES + 1)}

    def expected(self, tables: Mapping[int, PackTable]) -> bytes:
        """Return the hashes of its pages as the packs tell them.

        Raises:
            BlobCorrupt: a pack has not as many pages.
        """
        found = b"".join(tables[place].hashes[first * HASH_BYTES:(first + n) * HASH_BYTES]
                         for place, first, n in self.runs)
        if len(found) != self.n_pages * HASH_BYTES:
            raise BlobCorrupt("it needs more pages than a pack of it has")
        return found

    def content(self, tables: Mapping[int, PackTable], stored: Blocks) -> list[memoryview]:
        """Return its part of the stream, every page checked.

        Raises:
            BlobCorrupt: it is damaged.
        """
        expected = self.expected(tables)
        pages = b"".join(self._parts(tables, stored))
        at = 0
        for key, runs in groupby(self.runs, lambda run: tables[run[0]].key):
            end = at + sum(n for _, _, n in runs)
            if key.hashes(memoryview(pages)[at * PAGE_BYTES:end * PAGE_BYTES]) != expected[at * HASH_BYTES:
                                                                                        end * HASH_BYTES]:
                raise BlobCorrupt("a page is not what was stored")
            at = end
        return list(self._interleaved(memoryview(pages)))

    def _parts(self, tables: Mapping[int, PackTable], stored: Blocks) -> list[memoryview]:
        """Return its pages in order, out of the frames that hold them."""
        cut = {at: tables[at[0]].blocks[at[1]].frames(content) for at, content in stored.items()}
        order: dict[tuple[int, int, int], int] = {}
        frames: list[memoryview] = []
        lengths: list[int] = []
        slices: list[tuple[int, int, int]] = []
        for place, first, n in self.runs:
            at, end = first, first + n
            while at < end:
                number, page = divmod(at, BLOCK_PAGES)
                block = cut[place, number]
                index, skip = divmod(page, block.pages)
                held = min(block.pages, tables[place].blocks[number].pages - index * block.pages)
                take = min(held - skip, end - at)
                which = order.setdefault((place, number, index), len(order))
                if which == len(frames):
                    frames.append(block.stored[index])
                    lengths.append(held * PAGE_BYTES)
                slices.append((which, skip * PAGE_BYTES, (skip + take) * PAGE_BYTES))
                at += take
        raw = decompressed(frames, lengths)
        return [raw[which][start:end] for which, start, end in slices]

    def _interleaved(self, pages: memoryview) -> Iterator[memoryview]:
        at = 0
        for literals, n in self.pieces:
            yield literals
            yield pages[at:at + n * PAGE_BYTES]
            at += n * PAGE_BYTES


def windows(image: Manifest) -> Iterator[Window]:
    """Cut a stream into windows."""
    literals = memoryview(image.literals)
    window = Window()
    at_literal = at_page = 0
    pieces = iter(image.pieces)
    for n_bytes, n_pages in zip(pieces, pieces, strict=True):
        part, left = literals[at_literal:at_literal + n_bytes], n_pages
        at_literal += n_bytes
        while part or left:
            n = min(left, WINDOW_PAGES - window.n_pages)
            window.pieces.append((part, n))
            window.runs += _runs(image, at_page, n)
            window.n_pages += n
            part, left, at_page = part[:0], left - n, at_page + n
            if window.n_pages == WINDOW_PAGES:
                yield window
                window = Window()
    if window.pieces:
        yield window


def _runs(image: Manifest, start: int, n: int) -> Iterator[tuple[int, int, int]]:
    """Return neighbouring pages of packs, in the order of the stream."""
    at, end, pages = start, start + n, image.pages
    while at < end:
        first = at
        at += 1
        while at < end and pages[at] == pages[at - 1] + 1:
            at += 1
        yield pages[first] >> PACK_SHIFT, pages[first] & _PAGE_MASK, at - first
