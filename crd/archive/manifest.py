"""The bytes of an image object, version 4: where each page of the stream is, and all that is no page.

::

    0   8   "CRDARCH4"
    8   8   bytes of the stream
    16  8   number of pages
    24  32  digest of the image
    56  4   number of packs
    60  4   number of pieces
    64  8   bytes of literals
    72  12  stored lengths of the three columns, u32 each
    84  4   reserved, 0
    88      packs: of each its identifier u64, and how many pages of the image it holds u64; the first is the image's
            own, whose identifier is 0 if it has none
            columns, each one zstd frame:
              pieces: bytes of literals u32 and pages u32 that follow, again and again
              pages: number of each page in the order of the stream, as the signed difference, less one, from the
                     one before it, s64.  The number is the pack's place in the list above << 32, and the page's in it
              literals
    -32 32  BLAKE3 of all before

The stream is cut by the framing of its records (``crd/image/FORMAT.md``): of each record, its header and what of its
payload fills no page is literal, and what is left are pages.  So the pages of memory records, wherever they lie in the
stream, are the pages of the process.  A stream that is no image can be cut like this too.

The digest is BLAKE3("crd image 4", digest of each pack, or 32 zeros where there is none, pieces, numbers of the pages,
literals).  The digest of a pack covers the sum of each block in it.  So what has the digest of an image is that image,
to the last byte that is read for it, whoever had his hands on the archive since; and a stream that is stored a second
time has another one.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import zstandard
from blake3 import blake3

from crd.archive.pack import PAGES_MAX
from crd.errors import BlobCorrupt, NativeError
from crd.native.memory import PAGE_BYTES
from crd.native.numbers import from_differences, pages_by_place, to_differences

if TYPE_CHECKING:
    from collections.abc import Iterable

LITERAL_BYTES_MAX = 256 << 20
NO_PACK = 0
PACK_SHIFT = 32
HEAD = struct.Struct("<8sQQ32sIIQ3II")
NEED = struct.Struct("<2Q")
Need = tuple[int, int]
"""A pack, and how many pages of it an image needs."""
_MAGIC = b"CRDARCH4"
_SUM_BYTES = 32
_PACKS_MAX = 1 << 20
_CONTEXT = b"crd image 4"
_NO_DIGEST = bytes(32)
_LEVEL = 3


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an image is made of.

    Attributes:
        image_bytes: of the stream.
        digest: 32 bytes.
        packs: their identifiers, and how many of the pages each holds; a page's number has the place in this list in
            its upper half.
        pieces: bytes of literals, pages, and so on in turn (u32).
        pages: number of each page (u64).
        literals: one after the other.
    """

    image_bytes: int
    digest: bytes
    packs: list[Need]
    pieces: array[int]
    pages: array[int]
    literals: bytes

    def encode(self) -> list[bytes]:
        """Return the object, in parts."""
        differences = self.pages[:]
        to_differences(differences)
        columns = [_stored(column) for column in (self.pieces.tobytes(), differences.tobytes(), self.literals)]
        head = HEAD.pack(_MAGIC, self.image_bytes, len(self.pages), self.digest, len(self.packs),
                         len(self.pieces) // 2, len(self.literals), *map(len, columns), 0)
        parts = [head, *(NEED.pack(*need) for need in self.packs), *columns]
        check = blake3()
        for part in parts:
            check.update(part)
        return [*parts, check.digest()]


def digest_of(pack_digests: Iterable[bytes | None], pieces: array[int], pages: array[int],
              literals: bytes | bytearray) -> bytes:
    """Return the digest of an image, from those of its packs in their order, and the columns of its manifest."""
    digest = blake3(_CONTEXT)
    for part in (*(found or _NO_DIGEST for found in pack_digests), pieces, pages, literals):
        digest.update(memoryview(part).cast("B"))
    return digest.digest()


@dataclass(frozen=True, slots=True)
class Head:
    """The first bytes of an object: how much of everything there is."""

    image_bytes: int
    n_pages: int
    digest: bytes
    n_packs: int
    n_pieces: int
    n_literal_bytes: int
    column_bytes: tuple[int, int, int]

    @property
    def packs_end(self) -> int:
        """Where the list of packs ends."""
        return HEAD.size + NEED.size * self.n_packs

    @property
    def object_bytes(self) -> int:
        """How large the object is."""
        return self.packs_end + sum(self.column_bytes) + _SUM_BYTES

    def packs(self, start: bytes) -> list[Need]:
        """Return the list of packs, from at least ``packs_end`` bytes of the object.

        Raises:
            BlobCorrupt: they are fewer.
        """
        if len(start) < self.packs_end:
            raise BlobCorrupt("the object is torn")
        return list(NEED.iter_unpack(start[HEAD.size:self.packs_end]))


def parse_head(start: bytes) -> Head:
    """Return what the first HEAD.size bytes of an object say.

    Raises:
        BlobCorrupt: it is no image of this version, or an impossible one.
    """
    if len(start) < HEAD.size or not start.startswith(_MAGIC):
        raise BlobCorrupt("the object is torn, or was written by another version of crd")
    _, image_bytes, n_pages, digest, n_packs, n_pieces, n_literal_bytes, *lengths, reserved = HEAD.unpack_from(start)
    first, second, third = lengths
    head = Head(image_bytes, n_pages, digest, n_packs, n_pieces, n_literal_bytes, (first, second, third))
    if (not 0 < n_packs <= _PACKS_MAX or n_pages > PAGES_MAX or n_literal_bytes > LITERAL_BYTES_MAX
            or n_pieces > n_pages + 1 or n_literal_bytes + n_pages * PAGE_BYTES != image_bytes or reserved):
        raise BlobCorrupt("the object has impossible sizes")
    return head


def decode(data: bytes) -> Manifest:
    """Return what an object says.

    Raises:
        BlobCorrupt: it is damaged, or no image of this version.
    """
    head = _checked_head(data)
    columns, at = [], head.packs_end
    for length, raw_bytes in zip(head.column_bytes, (8 * head.n_pieces, 8 * head.n_pages, head.n_literal_bytes),
                                 strict=True):
        columns.append(_raw(data[at:at + length], raw_bytes))
        at += length
    pieces, pages, literals = array("I", columns[0]), array("Q", columns[1]), columns[2]
    if sum(pieces[::2]) != head.n_literal_bytes or sum(pieces[1::2]) != head.n_pages:
        raise BlobCorrupt("the object's pieces do not add up")
    from_differences(pages)
    packs = head.packs(data)
    try:
        counts = pages_by_place(pages, head.n_packs)
    except NativeError as error:
        raise BlobCorrupt("the object names a page of a pack that it does not have") from error
    if [needed for _, needed in packs] != counts or any(needed and pack == NO_PACK for pack, needed in packs):
        raise BlobCorrupt("the object's packs do not add up")
    return Manifest(head.image_bytes, head.digest, packs, pieces, pages, literals)


def needs(data: bytes) -> list[Need]:
    """Return which packs the image of an object needs, and nothing else of it.

    Raises:
        BlobCorrupt: it is damaged, or no image of this version.
    """
    return [need for need in _checked_head(data).packs(data) if need[0] != NO_PACK]


def _checked_head(data: bytes) -> Head:
    head = parse_head(data)
    if blake3(memoryview(data)[:-_SUM_BYTES]).digest() != data[-_SUM_BYTES:] or head.object_bytes != len(data):
        raise BlobCorrupt("the object is torn or damaged")
    return head


def _stored(column: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL).compress(column)


def _raw(stored: bytes, raw_bytes: int) -> bytes:
    try:
        if zstandard.frame_content_size(stored) == raw_bytes:
            return zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False) if raw_bytes else b""
    except zstandard.ZstdError as error:
        raise BlobCorrupt(f"the object is damaged: {error}") from error
    raise BlobCorrupt("a column of the object is not of the size it must be")
