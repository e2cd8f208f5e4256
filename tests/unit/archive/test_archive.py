"""Streams into the archive and back, and every way in which they may be damaged."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from crd.archive.archive import Archive
from crd.archive.layout import FRAME_BYTES
from crd.archive.sink import key_of
from crd.archive.stores.memory import MemoryStore
from crd.errors import ArchiveError, ArchiveFull, BlobCorrupt, BlobMissing, ImageSinkClosed
from crd.ids import Crid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from crd.archive.sink import Stored


def content(length: int) -> bytes:
    return random.Random(length).randbytes(length // 2 + 1) + bytes(length - length // 2 - 1)


@asynccontextmanager
async def archive(store: MemoryStore | None = None) -> AsyncIterator[Archive]:
    async with Archive(store or MemoryStore()) as opened:
        yield opened


async def store_image(target: Archive, crid: int, data: bytes) -> Stored:
    read_end, write_end = os.pipe()
    sink = await target.sink()
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


@pytest.mark.parametrize("length", [1, 100, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 5 * FRAME_BYTES + 17])
async def test_a_stream_comes_back_byte_for_byte(length: int) -> None:
    async with archive() as target:
        stored = await store_image(target, 7, content(length))
        assert stored.image_bytes == length
        assert await target.crids() == [7]
        await (await target.source(Crid(7))).verify(stored.digest)
        assert await read_image(target, 7) == content(length)
        assert await target.stored(Crid(7)) == stored
        assert (await target.size()).stored_bytes == stored.stored_bytes


async def test_equal_streams_have_equal_digests() -> None:
    async with archive() as target:
        first, second = [await store_image(target, crid, content(300_000)) for crid in (1, 2)]
        assert first.digest == second.digest


async def test_an_empty_stream_is_no_image() -> None:
    async with archive() as target:
        with pytest.raises(ArchiveError):
            await store_image(target, 1, b"")
        assert await target.crids() == []


async def test_a_forgotten_image_is_gone() -> None:
    async with archive() as target:
        await store_image(target, 1, b"x")
        await target.forget(Crid(1))
        await target.forget(Crid(1))
        with pytest.raises(BlobMissing):
            await target.source(Crid(1))


async def test_a_full_store_keeps_nothing() -> None:
    store = MemoryStore(capacity_bytes=1 << 20)
    async with archive(store) as target:
        read_end, write_end = os.pipe()
        sink = await target.sink()
        writing = asyncio.create_task(asyncio.to_thread(fill, write_end))
        with pytest.raises(ArchiveFull):
            await sink.drain(read_end)
        os.close(read_end)
        await writing
        await sink.abort()
        assert store.contents == {}


def fill(fd: int) -> None:
    try:
        write_all(fd, random.Random(1).randbytes(16 << 20))
    except BrokenPipeError:
        os.close(fd)


async def test_a_drain_that_is_cancelled_ends_though_nobody_writes() -> None:
    async with archive() as target:
        read_end, write_end = os.pipe()
        sink = await target.sink()
        draining = asyncio.create_task(sink.drain(read_end))
        await asyncio.sleep(0)
        draining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await draining
        os.close(read_end)
        os.close(write_end)
        await sink.abort()


async def test_every_damaged_byte_is_found_before_anything_is_restarted() -> None:
    store = MemoryStore()
    async with archive(store) as target:
        stored = await store_image(target, 1, content(2 * FRAME_BYTES + 5))
        whole = store.contents[key_of(1)]
        chance = random.Random(2)
        places = {0, 8, 12, 20, len(whole) - 1, len(whole) - 20, len(whole) - 40, len(whole) - 72, len(whole) - 80}
        for at in places | {chance.randrange(len(whole)) for _ in range(100)}:
            damaged = bytearray(whole)
            damaged[at] ^= 1 << chance.randrange(8)
            store.contents[key_of(1)] = bytes(damaged)
            with pytest.raises(BlobCorrupt):
                await (await target.source(Crid(1))).verify(stored.digest)


async def test_every_truncation_is_found() -> None:
    store = MemoryStore()
    async with archive(store) as target:
        stored = await store_image(target, 1, content(FRAME_BYTES + 5))
        whole = store.contents[key_of(1)]
        for length in [*range(100), *range(len(whole) - 100, len(whole))]:
            store.contents[key_of(1)] = whole[:length]
            with pytest.raises(BlobCorrupt):
                await (await target.source(Crid(1))).verify(stored.digest)


async def test_another_images_object_is_not_taken_for_it() -> None:
    async with archive() as target:
        await store_image(target, 1, b"one")
        other = await store_image(target, 2, b"two")
        with pytest.raises(BlobCorrupt):
            await (await target.source(Crid(1))).verify(other.digest)


async def test_a_reader_that_goes_away_is_an_error() -> None:
    async with archive() as target:
        await store_image(target, 1, content(4 << 20))
        read_end, write_end = os.pipe()
        os.close(read_end)
        with pytest.raises(ImageSinkClosed):
            await (await target.source(Crid(1))).pump(write_end)
        os.close(write_end)
