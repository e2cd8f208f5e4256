"""Room for stubs in a live target: the zeros that fill the last page behind the code of a mapping."""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.errors import FeatureMissing, NativeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.native.memory import Memory

_CLAIM = struct.Struct("<2QQ8s")
"""At the very end: start and bytes of an area; bytes of the room, claim included; who took it."""
_OWNER = b"crdstubs"
_TAIL_BYTES_MAX = 8192
_MARGIN_BYTES = 32
_ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class Area:
    """Memory that was mapped for stubs, for as long as the target is stopped."""

    start: int
    length: int

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.start + self.length


NO_AREA = Area(0, 0)


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes from ``start`` up to ``end`` that nobody but stubs uses.

    Attributes:
        content: of these bytes, as it was found.
        left: the area that whoever claimed the room has left mapped, or was about to map.
        claimed: it was claimed before.
    """

    start: int
    end: int
    content: bytes
    left: Area
    claimed: bool

    def claim(self, area: Area = NO_AREA) -> tuple[int, bytes]:
        """Return what marks the room, so that a later tracer knows what is in it, and where that is to be written.

        Args:
            area: that is mapped, or is about to be.
        """
        return self.end, _CLAIM.pack(area.start, area.length, self.end + _CLAIM.size - self.start, _OWNER)


def find_room(memory: Memory, candidates: Sequence[tuple[int, int]], wanted_bytes: int) -> Room:
    """Find room, or the room that was claimed before, by whatever version of crd.

    Args:
        memory: of the target.
        candidates: (start, end) of executable file-backed mappings; the first with room is taken.
        wanted_bytes: how much must be free.

    Raises:
        FeatureMissing: there is none.
    """
    for start, end in candidates:
        with suppress(NativeError):
            tail = memory.read(max(start, end - _TAIL_BYTES_MAX), min(end - start, _TAIL_BYTES_MAX))
            length = _room_bytes(tail)
            if length - _CLAIM.size >= wanted_bytes:
                return _room(end, tail[-length:])
    raise FeatureMissing("the target's code has no padding that could hold a stub",
                         hint="crd copies such a target while it is stopped (--method copy).")


def _room(end: int, content: bytes) -> Room:
    start, length, _, owner = _CLAIM.unpack_from(content, len(content) - _CLAIM.size)
    claimed = owner == _OWNER
    return Room(end - len(content), end - _CLAIM.size, content[:-_CLAIM.size],
                Area(start, length) if claimed else NO_AREA, claimed)


def _room_bytes(tail: bytes) -> int:
    _start, _length, claimed_bytes, owner = _CLAIM.unpack_from(tail, len(tail) - _CLAIM.size)
    if owner == _OWNER:
        return int(claimed_bytes) if claimed_bytes <= len(tail) else 0
    used_bytes = len(tail.rstrip(b"\0")) + _MARGIN_BYTES
    return max(0, len(tail) - used_bytes) // _ALIGNMENT * _ALIGNMENT
