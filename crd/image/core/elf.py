"""The frame of an ELF core of 64-bit x86 (elf(5)): file header, program headers and notes."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from crd.image.fields import BytesLike

FILE_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
NOTE_HEADER = struct.Struct("<III")

_IDENTITY = b"\x7fELF" + bytes([2, 1, 1])  # 64 bits, little-endian, version 1
_ET_CORE = 4
_EM_X86_64 = 62
_PT_LOAD, _PT_NOTE = 1, 4
_PN_XNUM = 0xFFFF
"""As many program headers or more: how many is in the first section header."""
_NOTE_ALIGNMENT = 4
_PAGE_BYTES = 4096


class Segment(NamedTuple):
    """Memory of a task.

    Attributes:
        address, memory_bytes: what it covers.
        offset, file_bytes: where in the core its first bytes are; none are there of the rest.
        protection: PROT_*.
    """

    address: int
    memory_bytes: int
    offset: int
    file_bytes: int
    protection: int

    def header(self) -> bytes:
        """Return its program header; PF_* have PROT_*'s bits the other way round."""
        flags = (self.protection & 1) << 2 | self.protection & 2 | self.protection >> 2 & 1
        return PROGRAM_HEADER.pack(_PT_LOAD, flags, self.offset, self.address, 0, self.file_bytes, self.memory_bytes,
                                   _PAGE_BYTES)


def notes_header(offset: int, file_bytes: int) -> bytes:
    """Return the program header of the notes."""
    return PROGRAM_HEADER.pack(_PT_NOTE, 0, offset, 0, 0, file_bytes, 0, _NOTE_ALIGNMENT)


def file_header(headers_at: int, n_headers: int) -> tuple[bytes, bytes]:
    """Return the file header, and what has to follow the program headers.

    Args:
        headers_at: where in the core the program headers are.
        n_headers: how many there are.
    """
    many = n_headers >= _PN_XNUM
    sections_at = headers_at + n_headers * PROGRAM_HEADER.size if many else 0
    header = FILE_HEADER.pack(_IDENTITY, _ET_CORE, _EM_X86_64, 1, 0, headers_at, sections_at, 0, FILE_HEADER.size,
                              PROGRAM_HEADER.size, min(n_headers, _PN_XNUM), _SECTION_HEADER.size * many, many, 0)
    return header, _SECTION_HEADER.pack(0, 0, 0, 0, 0, many, 0, n_headers, 0, 0) if many else b""


def note(owner: bytes, kind: int, content: BytesLike) -> bytes:
    """Return a note, padded.

    Args:
        owner: ``CORE`` or ``LINUX``.
        kind: NT_*.
        content: of it.
    """
    name = owner + b"\0"
    return b"".join([NOTE_HEADER.pack(len(name), len(content), kind), _padded(name), _padded(content)])


def _padded(data: BytesLike) -> bytes:
    return bytes(data) + bytes(-len(data) % _NOTE_ALIGNMENT)
