"""Writes images of every Linux-CR generation, in either byte order, from the tables of the specification alone.

Nothing here uses crd's own records: what these writers and crd's readers have in common is the specification.  Every
image has two tasks, which share their two open files; the first has a page of memory, TLS and FPU state.
"""

from __future__ import annotations

import struct
from typing import ClassVar

MAGIC_HEAD = 0x00FEED0CC0A2D200
MAGIC_TAIL = 0x002D2A0CC0DEEF00
TAKEN_AT = 0x49D0ECC0
PIDS_16 = ((2754, 2754, 2700, 0), (2755, 2755, 2754, 0))
"""vpid, vtgid, vppid, padding."""
PIDS_24 = ((2754, 2700, 2754, 2754, 2754, 0), (2755, 2754, 2755, 2754, 2754, 0))
"""vpid, vppid, vtgid, vpgid, vsid, padding or depth."""


def padded(text: bytes, length: int = 65) -> bytes:
    return text.ljust(length, b"\0")


class GenB:
    """v14-rc: frames of type and length, the length that of the payload (sections 2 and 3.3)."""

    tail_number = 5001
    version = (2, 6, 29, 1)
    release = b"2.6.29-rc8-cr"
    pids: ClassVar[tuple[tuple[int, ...], ...]] = PIDS_16
    cpu_bytes = 272
    machine = b"i686"
    has_xsave = 0
    word = "I"
    """Of an address of such a machine."""

    def __init__(self, order: str = "<", frame_codes: str = "II") -> None:
        self.order = order
        self.frame_codes = frame_codes

    def pack(self, codes: str, *values) -> bytes:
        return struct.pack(self.order + codes, *values)

    def record(self, kind: int, codes: str = "", *values, parent: int = 0) -> bytes:
        return self.raw(kind, self.pack(codes, *values), parent)

    def raw(self, kind: int, payload: bytes, parent: int = 0) -> bytes:
        return self.pack(self.frame_codes, kind, len(payload)) + payload

    def head(self, layout: str = "A") -> bytes:
        if layout == "wide":
            head = self.record(1, "Q4H4IQQ", MAGIC_HEAD, *self.version, 65, 65, 65, 0, TAKEN_AT, 1)
        else:
            numbers = (*self.version, 65, 65, 65)
            middle = (*numbers, 0) if layout == "A" else (0, *numbers)
            head = self.record(1, "Q8HQQ", MAGIC_HEAD, *middle, TAKEN_AT, 1)
        return head + self.texts(3)

    def texts(self, number: int) -> bytes:
        return b"".join(self.raw(number, padded(text)) for text in (self.release, b"#1", self.machine))

    def head_arch(self) -> bytes:
        return self.record(2, "HHHH", 1, self.has_xsave, 512, 0)

    def tree(self, *entries: tuple[int, ...]) -> bytes:
        array = b"".join(self.pack(f"{len(entry)}i", *entry) for entry in entries)
        return self.record(101, "II", len(entries), 0) + array

    def memory(self, pid: int) -> bytes:
        """One VMA of two pages, the first of which is in the image; no LDT."""
        return b"".join([
            self.record(201, "II11Q", 0, 1, *range(11), parent=pid),
            self.record(202, "IIQQQQQ", 1, 0, 0x8000, 0xA000, 0x25, 3, 0),
            self.record(203, "Q", 1), self.pack(self.word, 0x8000), bytes(4096), self.record(203, "Q", 0),
            self.record(204, "hhI", 8, 0, 0)])

    def files(self, pid: int, *, objects_known: bool) -> bytes:
        found = [self.record(301, "II", 0, 2, parent=pid)]
        for fd, path in enumerate((b"/tmp/in_0\0", b"/tmp/out0\0")):
            found.append(self.record(302, "IiII", fd + 1, fd, fd, 0))
            if not objects_known:
                found += [self.record(303, "HHIQQ", 1, 1, 0, 7, 0, parent=fd + 1), self.raw(5, path)]
        return b"".join(found)

    def task(self, pid: int = 2754, *, objects_known: bool = False) -> bytes:
        """Spec section 7.3."""
        registers = bytes(self.cpu_bytes - 8) + self.pack("II", 0, 1)
        return b"".join([
            self.record(102, "6I", 2, 0, 0, 17, 16, 0), self.raw(4, padded(b"self", 16)),
            self.memory(pid), self.files(pid, objects_known=objects_known),
            self.record(103, "HHHH", 3, 24, 1, 0, parent=pid), bytes(24), self.raw(104, registers, pid), bytes(512)])

    def tail(self) -> bytes:
        return self.record(self.tail_number, "Q", MAGIC_TAIL)

    def image(self, entries: tuple[tuple[int, ...], ...] = (), layout: str = "A") -> bytes:
        entries = entries or self.pids
        return b"".join([self.head(layout), self.head_arch(), self.tree(*entries), self.task(entries[0][0]),
                         self.task(entries[1][0], objects_known=True), self.tail()])


class GenA(GenB):
    """v13: a parent in every frame, the texts inside HEAD."""

    version = (2, 6, 28, 3)
    release = b"2.6.28-cr"

    def raw(self, kind: int, payload: bytes, parent: int = 0) -> bytes:
        return self.pack("hhI", kind, len(payload), parent) + payload

    def head(self, layout: str = "A") -> bytes:
        texts = [padded(text, 64) for text in (self.release, b"#1", self.machine)]
        return self.record(1, "Q4HQQ64s64s64s", MAGIC_HEAD, *self.version, TAKEN_AT, 1, *texts)


class GenC(GenB):
    """v16: lengths count the frame; pid array and pages in BUFFERs, TLS and FPU state in records of their own."""

    tail_number = 9001
    version = (2, 6, 30, 1)
    release = b"2.6.30-rc7"
    pids = PIDS_24
    cpu_bytes = 256
    thread, cpu, fpu = 106, 107, 202

    def raw(self, kind: int, payload: bytes, parent: int = 0) -> bytes:
        return self.pack("II", kind, 8 + len(payload)) + payload

    def architecture(self) -> bytes:
        """Little-endian whoever writes it; the byte orders of x86 and s390x."""
        return struct.pack("<H", 1 if self.order == "<" else 3)

    def head(self, layout: str = "B") -> bytes:
        numbers = self.pack("7H", *self.version, 65, 65, 65)
        payload = self.pack("Q", MAGIC_HEAD) + self.architecture() + numbers + self.pack("QQ", TAKEN_AT, 0)
        return self.raw(1, payload) + self.texts(3)

    def framed(self, content: bytes, kind: int = 3) -> bytes:
        """What v16 puts into a record and v14 leaves raw."""
        return self.raw(kind, content)

    def tree(self, *entries: tuple[int, ...]) -> bytes:
        array = b"".join(self.pack(f"{len(entry)}i", *entry) for entry in entries)
        return self.record(101, "II", len(entries), 0) + self.framed(array)

    def task(self, pid: int = 2754, *, objects_known: bool = False) -> bytes:
        registers = bytes(self.cpu_bytes - 8) + self.pack("II", 0, 1)
        files = b"" if objects_known else b"".join(
            self.record(5, "Ii", 4, objref) + self.raw(304, bytes(24)) + self.raw(303, path)
            for objref, path in ((1, b"/tmp/in_0\0"), (2, b"/tmp/out0\0")))
        pipe = self.record(305, "iI", 5, 0) + b"hello"
        return b"".join([
            self.record(102, "6I", 2, 0, 0, 17, 16, 0), self.raw(4, padded(b"self", 16)), files, pipe,
            self.raw(401, bytes(96)), self.raw(402, bytes(56)),
            self.record(403, "Q", 1), self.framed(self.pack(self.word, 0x8000) + bytes(4096)), self.record(403, "Q", 0),
            self.record(404, "QII", 0, 8, 2), self.framed(bytes(16)),
            self.record(self.thread, "HHHH", 3, 24, 1, 0), self.framed(bytes(24), 201),
            self.raw(self.cpu, registers), self.framed(bytes(512), self.fpu)])


class V14(GenC):
    """v14 final as far as the specification tells it: no arch id, pids raw; whatever else may be raw is."""

    def architecture(self) -> bytes:
        return bytes(2)

    def framed(self, content: bytes, kind: int = 3) -> bytes:
        return content


class GenD(GenC):
    """v18: a table of constants in HEAD, one number more before BUFFER, everything framed."""

    version = (2, 6, 32, 6)
    release = b"2.6.32"

    def constants(self) -> bytes:
        return self.pack("12H", 16, 44, 64, 65, 65, 65, 65, 65, 65, 16, 4096, 19)

    def head(self, layout: str = "") -> bytes:
        payload = b"".join([self.pack("Q", MAGIC_HEAD), self.architecture(), self.pack("4H", *self.version), bytes(6),
                            self.constants(), self.pack("QQ", TAKEN_AT, 0)])
        return self.raw(1, payload) + self.texts(4)

    def tree(self, *entries: tuple[int, ...]) -> bytes:
        array = b"".join(self.pack("6i", *entry) for entry in entries)
        return self.record(101, "II", len(entries), 0) + self.raw(4, array)

    def task(self, pid: int = 2754, *, objects_known: bool = False) -> bytes:
        files = b"" if objects_known else b"".join(
            self.record(6, "Ii", 4, objref) + self.raw(304, bytes(24)) + self.raw(303, path)
            for objref, path in ((1, b"/tmp/in_0\0"), (2, b"/tmp/out0\0")))
        return b"".join([
            self.record(102, "6I", 2, 0, 0, 17, 16, 0), self.raw(5, padded(b"self", 16)), files,
            self.raw(305, b"hello"), self.raw(401, bytes(96)), self.raw(402, bytes(56)), self.raw(403, bytes(8)),
            self.raw(4, bytes(4100)), self.raw(404, bytes(16)), self.raw(106, bytes(8)), self.raw(107, bytes(256))])


class V17(GenD):
    """v17, of whose HEAD only the size is told."""

    def constants(self) -> bytes:
        return bytes(8)


class V23(GenD):
    """user-cr's last: PIDS before TREE, everything behind it one number higher."""

    def tree(self, *entries: tuple[int, ...]) -> bytes:
        array = b"".join(self.pack("6i", *entry) for entry in entries)
        return self.raw(3, b"") + self.raw(101, array) + self.record(102, "II", len(entries), 0)

    def task(self, pid: int = 2754, *, objects_known: bool = False) -> bytes:
        return b"".join([
            self.record(103, "6I", 2, 0, 0, 17, 16, 0), self.raw(5, padded(b"self", 16)),
            b"" if objects_known else self.raw(303, b"/tmp/in_0\0") + self.raw(303, b"/tmp/out0\0"),
            self.raw(402, bytes(56)), self.raw(405, bytes(16)), self.raw(108, bytes(256))])


WRITERS = {
    "gen-A": GenA, "gen-B": GenB, "gen-C": GenC, "gen-C-v14": V14, "gen-D-v17": V17, "gen-D": GenD, "gen-D-v23": V23,
}
IMAGES = {f"{name}-{word}": writer(order).image()
          for name, writer in WRITERS.items() for order, word in (("<", "little"), (">", "big"))}
"""A whole image of each, by name."""
