"""The bytes of a pack: the pages that an image brought with it, little-endian.

::

    0   8   "CRDPACK2"
    8   8   identifier of the pack
    16  32  secret that its pages are hashed by (``crd.native.pages``)
    48      blocks of 64 pages (the last may be shorter): bytes of a raw frame u32, stored length u32 of each frame,
            then the zstd frames, each of that many bytes (the last may be shorter), which are whole pages
            table: 20 bytes a block: stored length u32, first 16 bytes of the BLAKE3 of what is stored
            hashes: 16 bytes a page
    -56 8   number of pages
    -48 32  digest of the pack: BLAKE3 of header, table, hashes and the 8 bytes before this
    -16 8   reserved, 0
    -8  8   "CRDPACKE"

A page is found by its number: which block, which frame, where in it.  New pages that came one after the other are in
frames of a whole block: that is quickest, and images that need few of these pages grow rare together with them.  Those
that were scattered among others are in frames of four: they will be replaced one by one, and what is left of them is
not to take long to read.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from blake3 import blake3

from crd.errors import BlobCorrupt
from crd.native.frames import BLOCK_PAGES
from crd.native.memory import PAGE_BYTES
from crd.native.pages import HASH_BYTES, SECRET_BYTES, PageKey

SCATTERED_FRAME_PAGES = 4
BLOCK_BYTES = BLOCK_PAGES * PAGE_BYTES
HEADER = struct.Struct(f"<8sQ{SECRET_BYTES}s")
ENTRY = struct.Struct("<I16s")
TRAILER = struct.Struct("<Q32sQ8s")
_MAGIC, _END = b"CRDPACK2", b"CRDPACKE"
_COUNT = struct.Struct("<Q")
PAGES_MAX = 1 << 28
"""A TiB; its table and hashes are 4 GiB, which bounds what a hostile object can make us read."""


@dataclass(frozen=True, slots=True)
class Block:
    """Where a block lies in its pack, and what it must be."""

    offset: int
    stored_bytes: int
    checksum: bytes
    pages: int

    def check(self, stored: memoryview) -> None:
        """Raises BlobCorrupt: this is not what was stored."""
        if _checksum(stored) != self.checksum:
            raise BlobCorrupt(f"the block at {self.offset} is damaged", offset=self.offset)


@dataclass(frozen=True, slots=True)
class PackTable:
    """What a pack holds.

    Attributes:
        digest: of the pack; whatever is in it is as it was if this is.
        key: of the hashes.
        blocks: in order; they hold 64 pages each but the last.
        hashes: 16 bytes a page.
    """

    digest: bytes
    key: PageKey
    blocks: list[Block]
    hashes: bytes

    @property
    def pages(self) -> int:
        """How many it holds."""
        return len(self.hashes) // HASH_BYTES


def entry(stored: bytes) -> bytes:
    """Return the entry of a block in the table."""
    return ENTRY.pack(len(stored), _checksum(stored))


def header(pack: int, key: PageKey) -> bytes:
    """Return the first bytes of a pack."""
    return HEADER.pack(_MAGIC, pack, key.secret)


def digest_of(head: bytes, entries: bytes | bytearray, hashes: bytes | bytearray) -> bytes:
    """Return the digest of a pack: of its header, table and hashes."""
    return blake3(head).update(entries).update(hashes).update(_COUNT.pack(len(hashes) // HASH_BYTES)).digest()


def trailer(digest: bytes, entries: bytes | bytearray, hashes: bytes | bytearray) -> list[bytes]:
    """Return what stands behind the blocks."""
    return [bytes(entries), bytes(hashes), TRAILER.pack(len(hashes) // HASH_BYTES, digest, 0, _END)]


def tail_bytes(end: bytes, size: int) -> int:
    """Return how many bytes table, hashes and trailer of a pack have, from the last ones of an object of ``size``.

    Raises:
        BlobCorrupt: it is no whole pack.
    """
    if len(end) < TRAILER.size or not end.endswith(_END):
        raise BlobCorrupt("the object has no end: it is torn or of another format")
    n_pages, *_ = TRAILER.unpack(end[-TRAILER.size:])
    needed = int(n_pages) * HASH_BYTES + _blocks_of(n_pages) * ENTRY.size + TRAILER.size
    if n_pages > PAGES_MAX or HEADER.size + needed > size:
        raise BlobCorrupt(f"the object cannot hold {n_pages} pages")
    return needed


def parse(pack: int, head: bytes, tail: bytes, size: int) -> PackTable:
    """Check header, table, hashes and trailer of a pack against each other.

    Raises:
        BlobCorrupt: they do not fit, or are damaged.
    """
    if len(head) < HEADER.size or HEADER.unpack(head)[:2] != (_MAGIC, pack):
        raise BlobCorrupt("the object is another pack, or was written by another version of crd")
    n_pages, digest, reserved, _ = TRAILER.unpack(tail[-TRAILER.size:])
    table_bytes = _blocks_of(n_pages) * ENTRY.size
    entries, hashes = tail[:table_bytes], tail[table_bytes:-TRAILER.size]
    if digest_of(head, entries, hashes) != digest or reserved:
        raise BlobCorrupt("the object's table is damaged")
    blocks, offset, left = [], HEADER.size, n_pages
    for stored_bytes, check in ENTRY.iter_unpack(entries):
        blocks.append(Block(offset, stored_bytes, check, min(left, BLOCK_PAGES)))
        offset, left = offset + stored_bytes, left - BLOCK_PAGES
    if offset + len(tail) != size or any(block.stored_bytes > 2 * BLOCK_BYTES for block in blocks):
        raise BlobCorrupt("the object's table does not add up")
    return PackTable(digest, PageKey(HEADER.unpack(head)[2]), blocks, hashes)


def _blocks_of(n_pages: int) -> int:
    return -(-n_pages // BLOCK_PAGES)


def _checksum(stored: bytes | memoryview) -> bytes:
    return blake3(stored).digest(length=16)
