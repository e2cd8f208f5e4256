"""What the first bytes of an image say; to know that much, nothing is loaded that reads the rest."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from crd.image.cursor import Cursor
from crd.image.generations import Generation, recognise
from crd.image.reader import ImageReader

if TYPE_CHECKING:
    from crd.image.header import Header


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
