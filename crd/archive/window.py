"""A stretch of an image's stream, and how its bytes come out of blocks of packs."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crd.archive.manifest import PACK_SHIFT
from crd.errors import BlobCorrupt
from crd.native.frames import blocks_of, open_pages
from crd.native.memory import PAGE_BYTES
from crd.native.pages import gathered_hashes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from crd.archive.manifest import Manifest
    from crd.archive.pack import PackTable

    Blocks = dict[int, memoryview]
    """What is stored of a block, by its number with the place of its pack in the manifest in the upper half."""

WINDOW_PAGES = 4096
BLOCK_MASK = (1 << PACK_SHIFT) - 1


@dataclass(slots=True)
class Window:
    """Up to WINDOW_PAGES pages of a stream, and the literals between them.

    Attributes:
        pieces: literals, and how many pages follow.
        pages: number of each.
    """

    pieces: list[tuple[memoryview, int]] = field(default_factory=list)
    pages: array[int] = field(default_factory=lambda: array("Q"))

    @property
    def blocks(self) -> array[int]:
        """The numbers of the blocks that hold its pages, with the place of the pack in the upper half."""
        return blocks_of(self.pages)

    def content(self, tables: Mapping[int, PackTable], stored: Blocks, room: memoryview) -> list[memoryview]:
        """Return its part of the stream, every page checked.

        Args:
            tables: of the packs, by their places.
            stored: the blocks.
            room: for up to WINDOW_PAGES pages: what is returned lies there.

        Raises:
            BlobCorrupt: it is damaged.
        """
        pages = room[:len(self.pages) * PAGE_BYTES]
        if self.pages:
            blocks = self.blocks
            found = open_pages(self.pages, blocks, (stored[number] for number in blocks),
                               (tables[number >> PACK_SHIFT].blocks[number & BLOCK_MASK].pages for number in blocks),
                               tables[self.pages[0] >> PACK_SHIFT].key, pages)
            if found != gathered_hashes(self.pages, {place: table.hashes for place, table in tables.items()}):
                raise BlobCorrupt("a page is not what was stored")
        return list(self._interleaved(pages))

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
            n = min(left, WINDOW_PAGES - len(window.pages))
            window.pieces.append((part, n))
            window.pages += image.pages[at_page:at_page + n]
            part, left, at_page = part[:0], left - n, at_page + n
            if len(window.pages) == WINDOW_PAGES:
                yield window
                window = Window()
    if window.pieces:
        yield window
