"""What an object on S3 is made of.

An object ``KEY`` is stored as one of S3 under that name.  What is longer than 4 MiB has its first parts, 4 MiB each,
under ``KEY.parts/NUMBER-HASH``; the object under ``KEY`` is put last and holds the rest, the hashes of the parts, and

::

    -48 16  of this upload, random
    -32 4   number of parts
    -28 4   bytes of each
    -24 16  first 16 bytes of the BLAKE3 of the hashes (16 bytes each) and the 24 bytes before this
    -8  8   "CRDS3OB1"

S3's own multipart upload serves the same purpose, and is not used: through obstore it can neither be conditional nor be
found again, so what a killed daemon began would be paid for ever.  Parts of our own are listed, and an upload that is
begun again (the spool does) sends only those that are missing: a part is named by what it holds.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from crd.errors import BlobCorrupt

if TYPE_CHECKING:
    from collections.abc import Sequence

PART_BYTES = 4 << 20
PARTS_MAX = 1 << 20
PARTS = ".parts/"
HASH_BYTES = 16
_HEAD = struct.Struct("<16sII")
_END = struct.Struct("<16sII16s8s")
END_BYTES = _END.size
_MAGIC = b"CRDS3OB1"


def part_hash(content: bytes) -> bytes:
    """Return what names a part."""
    return blake3(content).digest(length=HASH_BYTES)


def part_name(key: str, number: int, digest: bytes) -> str:
    """Return the name of a part of an object."""
    return f"{key}{PARTS}{number:06x}-{digest.hex()}"


def ending(upload: bytes, hashes: Sequence[bytes]) -> bytes:
    """Return what stands behind the rest of an object."""
    table, head = b"".join(hashes), _HEAD.pack(upload, len(hashes), PART_BYTES)
    return table + head + _check(table, head) + _MAGIC


def ending_bytes(end: bytes, size: int) -> int:
    """Return how many bytes the ending of an object has, from the last ones of an object of S3 of ``size``.

    Raises:
        BlobCorrupt: it is none.
    """
    if len(end) < _END.size or not end.endswith(_MAGIC):
        raise BlobCorrupt("it was not written by this version of crd, or is torn")
    _, n_parts, part_bytes, *_ = _END.unpack(end[-_END.size:])
    needed = int(n_parts) * HASH_BYTES + _END.size
    if n_parts > PARTS_MAX or not part_bytes or size < needed:
        raise BlobCorrupt("it has impossible sizes")
    return needed


@dataclass(frozen=True, slots=True)
class Layout:
    """What an object is made of: the hashes of its parts, in order, and how much follows them.

    Attributes:
        upload: 16 bytes that only the upload that made it has.
    """

    key: str
    upload: bytes
    part_bytes: int
    hashes: bytes
    rest_bytes: int

    @staticmethod
    def parse(key: str, end: bytes, size: int) -> Layout:
        """Return what an ending says, all ``ending_bytes`` of it.

        Raises:
            BlobCorrupt: it is damaged.
        """
        upload, n_parts, part_bytes, check, _ = _END.unpack(end[-_END.size:])
        table = end[:-_END.size]
        if _check(table, _HEAD.pack(upload, n_parts, part_bytes)) != check:
            raise BlobCorrupt("its end is damaged")
        return Layout(key, upload, part_bytes, table, size - len(end))

    @property
    def n_parts(self) -> int:
        """How many parts come before the rest."""
        return len(self.hashes) // HASH_BYTES

    @property
    def size(self) -> int:
        """Bytes of the object."""
        return self.part_bytes * self.n_parts + self.rest_bytes

    def pieces(self, offset: int, end: int) -> list[tuple[str, int, int]]:
        """Return what a range that is not empty is found in: name, and range there."""
        return [(self._name(number), max(0, offset - number * self.part_bytes),
                 min(self.part_bytes if number < self.n_parts else self.rest_bytes, end - number * self.part_bytes))
                for number in range(min(offset // self.part_bytes, self.n_parts),
                                    min((end - 1) // self.part_bytes, self.n_parts) + 1)]

    def _name(self, number: int) -> str:
        if number == self.n_parts:
            return self.key
        return part_name(self.key, number, self.hashes[number * HASH_BYTES:(number + 1) * HASH_BYTES])


def _check(table: bytes, head: bytes) -> bytes:
    return blake3(table).update(head).digest(length=16)
