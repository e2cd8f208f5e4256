"""Steps from record to record through an image of any generation."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from crd.image.codec import corrupt
from crd.image.generations import BUFFER, FULL_SERIES, PATCH_04, V16, V18, Dialect, Generation, Layouts, record_name
from crd.image.header import Header
from crd.image.inspection import Inspection, RecordEntry, hexed, shown
from crd.image.records import MAGIC_TAIL, UTS_BYTES

if TYPE_CHECKING:
    from crd.image.cursor import Cursor

_VARYING = {"HEAD_ARCH", "CPU", "THREAD", "MM_CONTEXT", "FD_DATA"}
_TEXTS = {"BUFFER", "STRING", "FNAME"}
TEXT_BYTES_MAX = 64 << 10
"""Payloads up to this are looked into; longer ones (gen-C's pages) are passed over."""


@dataclass(frozen=True, slots=True)
class Step:
    """A record that has been read; ``fields`` are decoded where its layout is known."""

    entry: RecordEntry
    parent: int
    payload: bytes
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The record's name."""
        return self.entry.name

    @property
    def text(self) -> str:
        """The payload up to its first NUL."""
        return text_of(self.payload)


class Walker:
    """A place in an image: what was found so far, and how the rest is to be read.

    Attributes:
        layouts: names and fields of the records, known after the header.
        xstate_bytes: of a task's FPU state, known after HEAD_ARCH.
    """

    def __init__(self, cursor: Cursor, dialect: Dialect, inspection: Inspection) -> None:
        """Stand before the first record."""
        self.cursor = cursor
        self.dialect = dialect
        self.inspection = inspection
        self.layouts: Layouts = {}
        self.xstate_bytes = 0

    def next_name(self) -> str:
        """Return the name of the record that comes next, or "" at the end."""
        frame = self.cursor.peek(self.dialect.frame_bytes)
        if len(frame) < self.dialect.frame_bytes:
            return ""
        return record_name(self.layouts, self.dialect.unpack(self.dialect.frame, frame)[0])

    def step(self, expected_name: str = "RECORD") -> Step:
        """Read the next record, whatever it is; the expected name is for the error if it is missing.

        Raises:
            ImageTruncated: the image ends inside it.
            ImageCorrupt: its length is not what its type says.
        """
        start = self.cursor.offset
        self.cursor.record = self.next_name() or expected_name
        frame = self.cursor.take(self.dialect.frame_bytes)
        number, length, *parent = self.dialect.unpack(self.dialect.frame, frame)
        name = record_name(self.layouts, number)
        payload_bytes = length - self.dialect.frame_bytes if self.dialect.length_counts_frame else length
        layout = self.layouts.get(number)
        expected = layout.payload_bytes if layout else None
        if payload_bytes < 0 or (expected is not None and not self._fits(name, expected, payload_bytes)):
            raise corrupt(f"has a length of {length} bytes", start, name)
        payload = b""
        if payload_bytes <= TEXT_BYTES_MAX:
            payload = self.cursor.take(payload_bytes)
        else:
            self.cursor.skip(payload_bytes)
        fields = layout.decode(self.dialect, payload) if layout and len(payload) == expected else {}
        said = _said(name, fields, payload) if self.inspection.contents else None
        entry = RecordEntry(start, number, name, payload_bytes, said)
        self.inspection.add_record(entry)
        return Step(entry, parent[0] if parent else 0, payload, fields)

    def known_name(self) -> str:
        """Return the name of the next record, past those of gen-B whose numbers nobody knows (spec section 3.1)."""
        while self.dialect.generation is Generation.B and self.next_name().startswith("RECORD "):
            self.step()
        return self.next_name()

    def expect(self, name: str) -> Step:
        """Read the next record, which must be a ``name``; gen-B's unknown records before it are passed over.

        Raises:
            ImageTruncated: the image ends here.
            ImageCorrupt: it is another record.
        """
        if (found := self.known_name()) not in {name, ""}:
            raise corrupt(f"stands where {name} must be", self.cursor.offset, found)
        return self.step(name)

    def tail(self) -> None:
        """Read TAIL and check its magic."""
        step = self.expect("TAIL")
        if step.fields["magic"] != MAGIC_TAIL:
            raise corrupt(f"has magic 0x{step.fields['magic']:016x}", step.entry.offset, step.name)

    def raw(self, n_bytes: int, name: str) -> bytes:
        """Take bytes that no record frames; the caller has bounded them."""
        self.cursor.record = name
        return self.cursor.take(n_bytes)

    def skip_raw(self, n_bytes: int, name: str) -> None:
        """Pass over bytes that no record frames."""
        self.cursor.record = name
        self.cursor.skip(n_bytes)

    def block(self, n_bytes: int, name: str) -> None:
        """Pass over bytes that v14 writes raw and later releases frame: a record of just that length has them, too."""
        frame = self.cursor.peek(self.dialect.frame_bytes)
        if len(frame) == self.dialect.frame_bytes:
            number, length = self.dialect.unpack(self.dialect.frame, frame)
            if number in self.layouts and length == self.dialect.frame_bytes + n_bytes:
                self.step()
                return
        self.skip_raw(n_bytes, name)

    def _fits(self, name: str, expected: int, found: int) -> bool:
        """Tell whether a record of fixed size may be that long: layouts of gen-B, gen-C and other processors vary."""
        return found == expected or (name in _VARYING and self.dialect.generation is not Generation.A)

    # --- the header ----------------------------------------------------------------------------

    def header(self) -> Header:
        """Read HEAD and its BUFFERs, and learn from them how the records are numbered.

        Raises:
            ImageError: there is no whole header.
        """
        head = self.step()
        if head.name != "HEAD":
            raise corrupt(f"has type {head.entry.type}", 0, "HEAD")
        dialect = self.dialect
        if dialect.generation is Generation.A:
            header = self._inline_header(head)
            self.layouts = PATCH_04 if self._next_number() == 101 else FULL_SERIES
            return header
        numbers = _header_numbers(dialect, head)
        if dialect.length_counts_frame and (note := _architecture(head)):
            self.inspection.notes.append(note)
        buffer_number = self._next_number()
        self.layouts = _layouts(dialect.generation, buffer_number)
        texts = []
        for _ in range(3):
            step = self.expect(BUFFER.name)
            if len(step.payload) != UTS_BYTES:
                raise corrupt(f"has {len(step.payload)} bytes instead of {UTS_BYTES}", step.entry.offset, step.name)
            texts.append(step.text)
        release, version, machine = texts
        return Header(**numbers, release=release, version=version, machine=machine)

    def _inline_header(self, head: Step) -> Header:
        if len(head.payload) != 224:
            raise corrupt(f"has {len(head.payload)} bytes instead of 224", 0, head.name)
        magic, major, minor, patch, rev, time, flags, release, version, machine = self.dialect.unpack(
            "QHHHHQQ64s64s64s", head.payload)
        return Header(magic=magic, major=major, minor=minor, patch=patch, rev=rev, time=time, flags=flags,
                      release=text_of(release), version=text_of(version), machine=text_of(machine))

    def _next_number(self) -> int:
        frame = self.cursor.peek(self.dialect.frame_bytes)
        whole = len(frame) == self.dialect.frame_bytes
        return int(self.dialect.unpack(self.dialect.frame, frame)[0]) if whole else 0


def _said(name: str, fields: dict[str, Any], payload: bytes) -> str:
    """Return what a record says: its fields, its text, or the beginning of its payload if nobody knows its layout."""
    if name in _TEXTS:
        return text_of(payload)
    return shown(fields) if fields else hexed(payload)


def _header_numbers(dialect: Dialect, head: Step) -> dict[str, int]:
    """Return the numbers of a HEAD without texts: version, revision, time, flags (spec sections 3.3 and 6.1).

    Where the version is, the three uts lengths of 65 behind it tell; gen-D has a table of constants instead.  Time and
    flags are the last of all layouts.
    """
    payload = head.payload
    if len(payload) < 40:
        raise corrupt(f"has {len(payload)} bytes", 0, head.name)
    version_at = kernel_version_at(dialect, payload)
    if version_at is None:
        raise corrupt("has no three uts lengths of 65", 0, head.name)
    magic = dialect.unpack("Q", payload)[0]
    major, minor, patch, rev = dialect.unpack("4H", payload, version_at)
    time, flags = dialect.unpack("QQ", payload, len(payload) - 16)
    return {"magic": magic, "major": major, "minor": minor, "patch": patch, "rev": rev, "time": time, "flags": flags}


def kernel_version_at(dialect: Dialect, payload: bytes) -> int | None:
    """Return where in the payload of a HEAD the kernel's version is; None: this is no HEAD of such a generation."""
    if dialect.generation in {Generation.A, Generation.D}:
        return 8 if dialect.generation is Generation.A else 10
    for codes, lengths_at, version_at in (("3H", 16, 8), ("3H", 18, 10), ("3I", 16, 8)):
        if dialect.unpack(codes, payload, lengths_at) == (UTS_BYTES,) * 3:
            return version_at
    return None


_ARCHITECTURES = {1: "x86_32", 2: "x86_64", 3: "s390x", 4: "ARM"}


def _architecture(head: Step) -> str:
    """Return what the arch id says, which is little-endian in every image; before v16 there is none (spec 6)."""
    (number,) = struct.unpack_from("<H", head.payload, 8)
    return f"architecture {number} ({_ARCHITECTURES.get(number, 'unknown')})" if number else ""


def _layouts(generation: Generation, buffer_number: int) -> Layouts:
    if buffer_number == 2:
        return PATCH_04
    if generation is Generation.B:
        return FULL_SERIES
    return V16 if generation is Generation.C else V18


def text_of(data: bytes) -> str:
    """Return text up to the first NUL, as the kernel's names are to be read."""
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")
