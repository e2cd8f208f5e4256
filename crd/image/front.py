"""What the first bytes of an image say; to know that much, nothing is loaded that reads the rest."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import TYPE_CHECKING

from crd.errors import ImageVersionUnsupported
from crd.image.cursor import Cursor
from crd.image.generations import Generation, recognise
from crd.image.reader import ImageReader

if TYPE_CHECKING:
    from crd.image.header import Header


def with_kernel(front: bytes, version: str) -> bytes:
    """Return the first bytes of an image of a kernel as another version of that would have written them.

    Args:
        front: its first ``PREFIX_BYTES``, or all of it.
        version: ``2.6.30``.

    Raises:
        ImageError: this is no such image.
    """
    from crd.image.walker import kernel_version_at

    dialect = recognise(front)
    at = kernel_version_at(dialect, front[dialect.frame_bytes:])
    if dialect.generation is Generation.CRD or at is None:
        raise ImageVersionUnsupported("this is no image of a Linux-CR kernel", record="HEAD")
    changed = bytearray(front)
    struct.pack_into(f"{dialect.byte_order}3H", changed, dialect.frame_bytes + at, *map(int, version.split(".")))
    return bytes(changed)


def header_of(front: bytes) -> Header:
    """Return the header of an image of any generation from its first ``PREFIX_BYTES``.

    Raises:
        ImageError: there is none.
    """
    cursor = Cursor(BytesIO(front))
    dialect = recognise(front)
    if dialect.generation is Generation.CRD:
        return ImageReader(cursor).header
    from crd.image.inspection import Inspection
    from crd.image.walker import Walker

    return Walker(cursor, dialect, Inspection(dialect.generation, "", "")).header()
