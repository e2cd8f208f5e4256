"""The bytes of an image object, version 2, little-endian.

::

    0   8   "CRDARCH2"
    8   4   bytes of a raw frame (the last may be shorter)
    12  4   reserved, 0
    16      frames: each one zstd frame, one after the other
            table: 24 bytes a frame: stored length u32, raw length u32, 16 bytes of the BLAKE3 of what is stored
    -72 8   number of frames
    -64 8   raw bytes of the stream
    -56 32  the digest: BLAKE3 of header, table and the 16 bytes before this
    -24 16  reserved, 0
    -8  8   "CRDARCHE"

Written front to back; a torn object has no trailer, and is under a temporary name anyway.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from crd.errors import BlobCorrupt

if TYPE_CHECKING:
    from collections.abc import Iterator

FRAME_BYTES = 256 << 10
HEADER = struct.Struct("<8sII")
ENTRY = struct.Struct("<II16s")
TRAILER = struct.Struct("<QQ32s16s8s")
_MAGIC, _END = b"CRDARCH2", b"CRDARCHE"
_COUNTS = struct.Struct("<QQ")
STORED_BYTES_MAX = FRAME_BYTES + (FRAME_BYTES >> 8) + 512
"""More than ZSTD_compressBound of a frame."""
FRAMES_MAX = 1 << 22
"""A TiB of stream; its table is 96 MiB, which bounds what a hostile object can make us read."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a frame lies, and what it must be."""

    offset: int
    stored_bytes: int
    raw_bytes: int
    checksum: bytes


@dataclass(frozen=True, slots=True)
class Table:
    """All frames of an object, and the stream they make."""

    entries: bytes
    image_bytes: int
    digest: bytes

    def frames(self) -> Iterator[Frame]:
        """Iterate over the frames, in the order of the stream."""
        offset = HEADER.size
        for stored_bytes, raw_bytes, check in ENTRY.iter_unpack(self.entries):
            yield Frame(offset, stored_bytes, raw_bytes, check)
            offset += stored_bytes


def header() -> bytes:
    """Return the first bytes of an object."""
    return HEADER.pack(_MAGIC, FRAME_BYTES, 0)


def checksum(stored: bytes | memoryview) -> bytes:
    """Return the 16 bytes that a frame is checked by."""
    return blake3(stored).digest(length=16)


def digest_of(entries: bytes | bytearray, image_bytes: int) -> bytes:
    """Return the digest of an image that has these frames."""
    return blake3(header()).update(entries).update(_COUNTS.pack(len(entries) // ENTRY.size, image_bytes)).digest()


def trailer(entries: bytes, image_bytes: int) -> bytes:
    """Return table and trailer of an object."""
    return entries + TRAILER.pack(len(entries) // ENTRY.size, image_bytes, digest_of(entries, image_bytes), bytes(16),
                                  _END)


def parse_trailer(data: bytes, size: int) -> int:
    """Return how many frames the table has, from the last bytes of an object of ``size`` bytes.

    Raises:
        BlobCorrupt: it is no whole object.
    """
    if len(data) != TRAILER.size or not data.endswith(_END):
        raise BlobCorrupt("the object has no end: it is torn or of another format")
    n_frames, *_ = TRAILER.unpack(data)
    if n_frames > FRAMES_MAX or HEADER.size + n_frames * (ENTRY.size + 1) + TRAILER.size > size:
        raise BlobCorrupt(f"the object cannot hold {n_frames} frames")
    return int(n_frames)


def parse_table(head: bytes, entries: bytes, data: bytes, size: int) -> Table:
    """Check header, table and trailer against each other.

    Raises:
        BlobCorrupt: they do not fit, or are damaged.
    """
    if head != header():
        raise BlobCorrupt("the object was written by another version of crd")
    n_frames, image_bytes, digest, reserved, _ = TRAILER.unpack(data)
    if digest_of(entries, image_bytes) != digest or any(reserved):
        raise BlobCorrupt("the object's table is damaged")
    table = Table(entries, image_bytes, digest)
    end, raw = HEADER.size, 0
    for frame in table.frames():
        if not 0 < frame.stored_bytes <= STORED_BYTES_MAX or not 0 < frame.raw_bytes <= FRAME_BYTES:
            raise BlobCorrupt("a frame of the object has an impossible size")
        end, raw = end + frame.stored_bytes, raw + frame.raw_bytes
    if (end + len(entries) + TRAILER.size, raw, len(entries)) != (size, image_bytes, n_frames * ENTRY.size):
        raise BlobCorrupt("the object's table does not add up")
    return table
