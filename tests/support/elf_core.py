"""Reads ELF cores, as elf(5) and core(5) describe them; knows nothing of what writes them."""

from __future__ import annotations

import struct
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PT_LOAD, PT_NOTE = 1, 4
PN_XNUM = 0xFFFF
PAGE_BYTES = 4096


class Load(NamedTuple):
    flags: int
    offset: int
    address: int
    file_bytes: int
    memory_bytes: int


class Note(NamedTuple):
    owner: bytes
    kind: int
    content: bytes


class ElfCore:
    """A core, checked as it is read."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.size = path.stat().st_size
        header = struct.unpack("<16sHHIQQQIHHHHHH", self._at(0, 64))
        identity, kind, machine, version, entry, headers_at, sections_at, flags, own, each, count, *sections = header
        assert identity == b"\x7fELF\2\1\1" + bytes(9)
        assert (kind, machine, version, entry, flags, own, each) == (4, 62, 1, 0, 0, 64, 56)
        if count == PN_XNUM:
            assert sections == [64, 1, 0]
            count = struct.unpack("<IIQQQQIIQQ", self._at(sections_at, 64))[7]
            assert self.size == sections_at + 64
        else:
            assert (sections_at, *sections) == (0, 0, 0, 0)
            assert self.size == headers_at + count * 56
        table = self._at(headers_at, count * 56)
        headers = [*struct.iter_unpack("<IIQQQQQQ", table)]
        assert Counter(header[0] for header in headers) == {PT_NOTE: 1, PT_LOAD: count - 1}
        assert headers[0][0] == PT_NOTE
        self.notes = [*self._notes(headers[0][2], headers[0][5])]
        self.loads = [Load(*header[1:4], *header[5:7]) for header in headers[1:]]
        end = 0
        for load in self.loads:
            assert load.address >= end, "segments ascend"
            assert 0 <= load.file_bytes <= load.memory_bytes > 0
            assert load.offset % PAGE_BYTES == load.address % PAGE_BYTES == 0
            assert load.offset + load.file_bytes <= headers_at
            assert self._at(load.offset, 4) != b"\x7fELF" or load.file_bytes, "BFD takes that for a program"
            end = load.address + load.memory_bytes

    def _at(self, offset: int, n_bytes: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(n_bytes)
        assert len(data) == n_bytes
        return data

    def _notes(self, offset: int, n_bytes: int) -> Iterator[Note]:
        data, at = self._at(offset, n_bytes), 0
        while at < n_bytes:
            name_bytes, content_bytes, kind = struct.unpack_from("<III", data, at)
            name_at, content_at = at + 12, at + 12 + name_bytes + -name_bytes % 4
            yield Note(data[name_at:name_at + name_bytes - 1], kind, data[content_at:content_at + content_bytes])
            at = content_at + content_bytes + -content_bytes % 4
        assert at == n_bytes

    def contents(self, kind: int) -> list[bytes]:
        """Return the notes of a kind."""
        return [note.content for note in self.notes if note.kind == kind]

    def page(self, address: int) -> bytes | None:
        """Return the page at an address; None: nothing of it is in the core.

        Raises:
            KeyError: no segment covers it.
        """
        for load in self.loads:
            if load.address <= address < load.address + load.memory_bytes:
                into = address - load.address
                return self._at(load.offset + into, PAGE_BYTES) if into < load.file_bytes else None
        raise KeyError(address)

    def mapped_files(self) -> list[tuple[int, int, int, str]]:
        """Return start, end, offset in pages and path of each."""
        (content,) = self.contents(0x46494C45)
        count, page_bytes = struct.unpack_from("<QQ", content)
        assert page_bytes == PAGE_BYTES
        paths = content[16 + 24 * count:].split(b"\0")
        assert len(paths) == count + 1
        assert not paths[-1]
        ranges = struct.iter_unpack("<QQQ", content[16:16 + 24 * count])
        return [(*one, path.decode()) for one, path in zip(ranges, paths[:-1], strict=True)]

    def close(self) -> None:
        self._file.close()
