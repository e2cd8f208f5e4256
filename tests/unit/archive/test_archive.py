"""Streams into the archive and back, and every way in which they may be damaged."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from crd.archive.archive import Archive
from crd.archive.names import image_key
from crd.archive.pack import BLOCK_BYTES
from crd.archive.stores.memory import MemoryStore
from crd.errors import ArchiveError, ArchiveFull, BlobCorrupt, BlobMissing, ImageSinkClosed
from crd.ids import Crid
from crd.native.memory import PAGE_BYTES
from tests.unit.archive.streams import content, read_image, record, store_image, write_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def archive(store: MemoryStore | None = None) -> AsyncIterator[Archive]:
    async with Archive(store or MemoryStore()) as opened:
        yield opened


STREAMS = {
    "a byte": b"x",
    "less than a header": b"1234567",
    "a header": record(b""),
    "a record cut off in its header": record(b"abc") + b"1234",
    "a record cut off before its pages": record(bytes(PAGE_BYTES + 100))[:50],
    "a record cut off in a page": record(content(3 * PAGE_BYTES))[:-1],
    "a record cut off between pages": record(content(3 * PAGE_BYTES))[:8 + PAGE_BYTES],
    "small records": b"".join(record(bytes([n]) * n) for n in range(200)),
    "a page": record(content(PAGE_BYTES)),
    "a block": record(content(BLOCK_BYTES)),
    "a block and a page": record(content(BLOCK_BYTES + PAGE_BYTES)),
    "records of all sizes": b"".join(record(content(n)) for n in range(1, 3 * PAGE_BYTES, 777)),
    "much": record(b"first") + record(content(30 * BLOCK_BYTES + 17)) * 3 + record(b"last"),
    "noise": random.Random(1).randbytes(5 * BLOCK_BYTES + 17),
}


@pytest.mark.parametrize("data", STREAMS.values(), ids=STREAMS)
async def test_a_stream_comes_back_byte_for_byte(data: bytes) -> None:
    async with archive() as target:
        stored = await store_image(target, 7, data)
        assert stored.image_bytes == len(data)
        assert await target.crids() == [7]
        await (await target.source(Crid(7))).verify(stored.digest)
        assert await read_image(target, 7) == data
        assert await target.stored(Crid(7)) == stored
        assert (await target.size()).stored_bytes == stored.stored_bytes


async def test_a_digest_is_that_of_one_image() -> None:
    async with archive() as target:
        data = record(content(300_000))
        stored = {crid: await store_image(target, crid, data, base) for crid, base in ((1, 0), (2, 0), (3, 1), (4, 3))}
        for crid, one in stored.items():
            assert (await target.stored(Crid(crid))).digest == one.digest
            for other in stored.values():
                source = await target.source(Crid(crid))
                if other.digest == one.digest:
                    await source.verify(other.digest)
                else:
                    with pytest.raises(BlobCorrupt):
                        await source.verify(other.digest)
        assert len({stored[crid].digest for crid in (1, 2, 3)}) == 3
        assert stored[3].stored_bytes < stored[1].stored_bytes / 10


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
        write_all(fd, record(random.Random(1).randbytes(16 << 20)))
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


async def shared(store: MemoryStore, target: Archive) -> str:
    """Store two images, of which the second has pages of the first; return its digest."""
    pages = random.Random(1).randbytes(9 * PAGE_BYTES)
    await store_image(target, 1, record(pages))
    stored = await store_image(target, 2, record(b"x" * PAGE_BYTES + pages[:8 * PAGE_BYTES]), base=1)
    assert sorted(key.rpartition(".")[2] for key in store.contents) == ["image", "image", "pack", "pack"]
    return stored.digest


async def test_every_damaged_byte_is_found_before_anything_is_restarted() -> None:
    store = MemoryStore()
    async with archive(store) as target:
        digest = await shared(store, target)
        chance = random.Random(2)
        for key, whole in list(store.contents.items()):
            if key == image_key(1):
                continue
            ends = {*range(16), *range(len(whole) - 100, len(whole))}
            for at in ends | {chance.randrange(len(whole)) for _ in range(100)}:
                damaged = bytearray(whole)
                damaged[at] ^= 1 << chance.randrange(8)
                store.contents[key] = bytes(damaged)
                with pytest.raises(BlobCorrupt) as caught:
                    await (await target.source(Crid(2))).verify(digest)
                assert caught.value.message.startswith(key)
            store.contents[key] = whole
        await (await target.source(Crid(2))).verify(digest)


async def test_every_truncation_is_found() -> None:
    store = MemoryStore()
    async with archive(store) as target:
        digest = await shared(store, target)
        for key, whole in list(store.contents.items()):
            if key == image_key(1):
                continue
            for length in [*range(100), *range(len(whole) - 100, len(whole))]:
                store.contents[key] = whole[:length]
                with pytest.raises(BlobCorrupt):
                    await (await target.source(Crid(2))).verify(digest)
            store.contents[key] = whole


async def test_another_images_object_is_not_taken_for_it() -> None:
    async with archive() as target:
        await store_image(target, 1, b"one")
        other = await store_image(target, 2, b"two")
        with pytest.raises(BlobCorrupt):
            await (await target.source(Crid(1))).verify(other.digest)


async def test_a_reader_that_goes_away_is_an_error() -> None:
    async with archive() as target:
        await store_image(target, 1, record(content(4 << 20)))
        read_end, write_end = os.pipe()
        os.close(read_end)
        with pytest.raises(ImageSinkClosed):
            await (await target.source(Crid(1))).pump(write_end)
        os.close(write_end)
