"""Streams, into an archive and back."""

from __future__ import annotations

import asyncio
import os
import random
import struct
from typing import TYPE_CHECKING

from crd.ids import Crid
from crd.native.memory import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.archive.archive import Archive
    from crd.archive.sink import Stored


def record(payload: bytes, kind: int = 99) -> bytes:
    """Return a record; what of its payload fills no page comes before the pages."""
    return struct.pack("<II", kind, len(payload)) + payload


def content(length: int) -> bytes:
    """Return noise, and then as many zeros."""
    return random.Random(length).randbytes(length // 2 + 1) + bytes(length - length // 2 - 1)


def page(number: int) -> bytes:
    return random.Random(number).randbytes(PAGE_BYTES)


def stream(numbers: Sequence[int]) -> bytes:
    """Return records of up to 7 of these pages."""
    return record(b"head") + b"".join(
        record(f"{start}".encode() + b"".join(map(page, numbers[start:start + 7])))
        for start in range(0, len(numbers), 7))


async def store_image(target: Archive, crid: int, data: bytes, base: int | None = None) -> Stored:
    read_end, write_end = os.pipe()
    sink = await target.sink(None if base is None else Crid(base))
    writing = asyncio.create_task(asyncio.to_thread(write_all, write_end, data))
    try:
        assert await sink.drain(read_end) == len(data)
        await writing
        return await sink.commit(Crid(crid))
    finally:
        await sink.abort()
        os.close(read_end)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view[:100_003]):]
    os.close(fd)


async def read_image(target: Archive, crid: int) -> bytes:
    read_end, write_end = os.pipe()
    source = await target.source(Crid(crid))
    reading = asyncio.create_task(asyncio.to_thread(read_all, read_end))
    try:
        await source.pump(write_end)
    finally:
        os.close(write_end)
        data = await reading
    return data


def read_all(fd: int) -> bytes:
    data = b"".join(iter(lambda: os.read(fd, 1 << 20), b""))
    os.close(fd)
    return data
