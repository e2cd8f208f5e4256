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
class Room:
    """Bytes from ``start`` up to ``end`` that nobody but stubs uses."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Area:
    """Memory that was mapped for stubs, for as long as the target is stopped."""

    start: int
    length: int

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.start + self.length


NO_AREA = Area(0, 0)


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
            room_start = end - _room_bytes(tail)
            if end - _CLAIM.size - room_start >= wanted_bytes:
                return Room(room_start, end - _CLAIM.size)
    raise FeatureMissing("the target's code has no padding that could hold a stub",
                         hint="crd copies such a target while it is stopped (--method copy).")


def claim(memory: Memory, room: Room, area: Area = NO_AREA) -> None:
    """Mark the room, so that a later tracer knows what is in it, and what else there is of ours in the target.

    Args:
        memory: of the target.
        room: the room.
        area: that is mapped, or is about to be.
    """
    memory.write(room.end, _CLAIM.pack(area.start, area.length, room.end + _CLAIM.size - room.start, _OWNER))


def claimed_area(memory: Memory, room: Room) -> Area:
    """Return the area that whoever claimed the room has left mapped, or was about to map."""
    start, length, _room_bytes, owner = _CLAIM.unpack(memory.read(room.end, _CLAIM.size))
    return Area(start, length) if owner == _OWNER else NO_AREA


def _room_bytes(tail: bytes) -> int:
    _start, _length, claimed_bytes, owner = _CLAIM.unpack_from(tail, len(tail) - _CLAIM.size)
    if owner == _OWNER:
        return int(claimed_bytes) if claimed_bytes <= len(tail) else 0
    used_bytes = len(tail.rstrip(b"\0")) + _MARGIN_BYTES
    return max(0, len(tail) - used_bytes) // _ALIGNMENT * _ALIGNMENT
