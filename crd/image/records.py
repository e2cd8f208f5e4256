"""The records of Linux-CR v14-rc2 that crd writes, and their two numberings (spec sections 3.1 and 3.3).

A record's own ``record_type`` is its number in the full patch series, which is what crd writes.  The kernel of patch
04 alone numbers three of them otherwise.
"""

from __future__ import annotations

from enum import Enum

from crd.image.codec import Record
from crd.image.fields import U16, U32, U64, Rest  # noqa: TC001  # evaluated when the classes are made

MAGIC_HEAD = 0x00FEED0CC0A2D200
MAGIC_TAIL = 0x002D2A0CC0DEEF00
CONTEXT_CHECKPOINT = 0x1
"""CR_CTX_CKPT, the one bit that header flags may hold."""

UTS_BYTES = 65
"""sizeof a string of struct new_utsname: 64 characters and the final NUL."""
TASK_COMM_BYTES = 16


class Head(Record, type=1):
    """The first record, layout A: 40 bytes."""

    magic: U64 = MAGIC_HEAD
    major: U16
    minor: U16
    patch: U16
    rev: U16
    release_bytes: U16 = UTS_BYTES
    version_bytes: U16 = UTS_BYTES
    machine_bytes: U16 = UTS_BYTES
    padding: U16 = 0
    time: U64  # seconds since the epoch
    flags: U64


class HeadArch(Record, type=2):
    """What the processor's state looks like (x86)."""

    has_fxsr: U16
    has_xsave: U16
    xstate_bytes: U16
    padding: U16 = 0


class Buffer(Record, type=3):
    """Bytes; of the header: 65 each of release, version and machine."""

    data: Rest


class String(Record, type=4):
    """Text, padded with NUL; readers force its last byte to NUL."""

    data: Rest

    @property
    def text(self) -> str:
        """The text up to the first NUL: what follows may be remains of older names."""
        return self.data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


class Task(Record, type=102):
    """A task; its name follows as a STRING of up to ``comm_bytes`` bytes."""

    state: U32
    exit_state: U32
    exit_code: U32
    exit_signal: U32
    comm_bytes: U32 = TASK_COMM_BYTES
    padding: U32 = 0


class Tail(Record, type=5001):
    """The last record."""

    magic: U64 = MAGIC_TAIL


class Numbering(Enum):
    """Which patches the writing kernel had, told by the type of the second record (a BUFFER)."""

    PATCH_04 = 2
    FULL_SERIES = 3

    def number(self, kind: type[Record]) -> int:
        """Return the type of a record in this numbering."""
        if self is Numbering.PATCH_04:
            return _PATCH_04.get(kind, kind.record_type)
        return kind.record_type


_PATCH_04: dict[type[Record], int] = {Buffer: 2, String: 3, Task: 101}


def terminated(text: memoryview) -> bytes:
    """Return what v14 reads as a STRING: the bytes, the last one forced to NUL even if it was text."""
    return bytes(text[:-1]) + b"\0" if text else b""


def comm_string(comm: str) -> String:
    """Return the STRING of a task's name: 16 bytes, cut to 15 characters and padded with NUL."""
    name = comm.encode("utf-8", "surrogateescape")[: TASK_COMM_BYTES - 1]
    return String(data=name.ljust(TASK_COMM_BYTES, b"\0"))
