"""Mutations that keep an image's framing: records are changed, repeated, dropped and moved, their lengths right."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.errors import ImageError
from crd.image.framing import FRAME
from crd.image.generations import PREFIX_BYTES, recognise

if TYPE_CHECKING:
    from collections.abc import Callable

_FRAMES_MAX = 64


@dataclass(frozen=True)
class Framing:
    """How a stream of records is framed: type and length, whatever else a frame has, and what the length counts."""

    layout: struct.Struct = FRAME
    counts_frame: bool = False

    def split(self, data: bytes) -> tuple[list[tuple[list[int], bytes]], bytes]:
        """Return frames and payloads from the front on, and the rest that is not framed (as raw blocks are not)."""
        records, at = [], 0
        while at + self.layout.size <= len(data) and len(records) < _FRAMES_MAX:
            frame = [*self.layout.unpack_from(data, at)]
            payload_bytes = frame[1] - self.layout.size * self.counts_frame
            end = at + self.layout.size + payload_bytes
            if payload_bytes < 0 or end > len(data):
                break
            records.append((frame, data[at + self.layout.size:end]))
            at = end
        return records, data[at:]

    def join(self, records: list[tuple[list[int], bytes]], rest: bytes) -> bytes:
        """Return the stream, every length right."""
        parts = []
        for (number, _, *others), payload in records:
            length = len(payload) + self.layout.size * self.counts_frame
            parts += [self.layout.pack(number, length, *others), payload]
        return b"".join([*parts, rest])


def framing_of(image: bytes) -> Framing:
    """Return the framing of an image of any generation."""
    try:
        dialect = recognise(image[:PREFIX_BYTES])
    except ImageError:
        return Framing()
    return Framing(struct.Struct(dialect.byte_order + dialect.frame), dialect.length_counts_frame)


def mutated(data: bytes, framing: Framing, seed: int, mutate: Callable[[bytes, int], bytes], bytes_max: int) -> bytes:
    """Change one record, by ``mutate`` (of bytes, and of how many at most) where its payload is to change."""
    records, rest = framing.split(data)
    choice, seed = seed % 11, seed // 11
    if not records or choice > 7:
        return mutate(data, bytes_max)
    at = seed % len(records)
    frame, payload = records[at]
    other_frame, other_payload = records[seed // 64 % len(records)]
    match choice:
        case 0:
            records.insert(at, (other_frame, other_payload))
        case 1:
            del records[at]
        case 2:
            frame[0] = other_frame[0]
        case 3:
            frame[0] = (frame[0] + (seed % 3 or -1)) % 0x7FFF
        case _:
            records[at] = frame, mutate(payload or b"\0", max(1, min(len(payload) + 64, bytes_max)))
    try:
        return framing.join(records, rest)[:bytes_max]
    except struct.error:  # too long for the 16 bits of gen-A
        return data
