"""How streams flow: in bounded memory, in order whatever the threads do, and to an end whenever they are stopped."""

from __future__ import annotations

import asyncio
import os
import random
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zstandard

from crd.archive import sink as sink_module
from crd.archive.archive import Archive
from crd.archive.cutter import BLOCK_BYTES, FrameCutter
from crd.archive.layout import ENTRY, FRAME_BYTES, FRAMES_MAX, TRAILER, checksum, header, trailer
from crd.archive.sink import key_of
from crd.archive.stores.memory import MemoryStore, MemoryUpload
from crd.errors import ArchiveError, ArchiveUnavailable, BlobCorrupt
from crd.ids import Crid
from tests.unit.archive.test_archive import content, read_all, read_image, store_image, write_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.archive.stores.store import Part


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("length", [1, BLOCK_BYTES, 4 * BLOCK_BYTES, 4 * BLOCK_BYTES + 1, 9 * BLOCK_BYTES - 5])
async def test_the_order_is_kept_by_any_number_of_threads(threads: int, length: int) -> None:
    data = content(length)
    async with Archive(MemoryStore(), threads=threads) as archive:
        stored = await store_image(archive, 1, data)
        assert stored.digest == (await archive.source(Crid(1))).table.digest.hex()
        assert await read_image(archive, 1) == data


async def test_a_stream_that_trickles_is_one_all_the_same() -> None:
    data = content(3 * FRAME_BYTES)
    async with Archive(MemoryStore()) as archive:
        read_end, write_end = os.pipe()
        sink = await archive.sink()
        draining = asyncio.create_task(sink.drain(read_end))
        for start in range(0, len(data), 50_021):
            await asyncio.to_thread(os.write, write_end, data[start:start + 50_021])
        os.close(write_end)
        assert await draining == len(data)
        os.close(read_end)
        await sink.commit(Crid(1))
        assert await read_image(archive, 1) == data


class SlowUpload(MemoryUpload):
    """Stores nothing before it is told to."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.go_on = asyncio.Event()

    async def write(self, parts: Sequence[Part]) -> None:
        await self.go_on.wait()
        await super().write(parts)


async def test_a_slow_store_makes_the_stream_wait() -> None:
    upload = SlowUpload(MemoryStore())
    sink = sink_module.ImageSink(upload, level=1, threads=2)
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    os.set_blocking(read_end, True)
    draining = asyncio.create_task(sink.drain(read_end))
    taken, idle = 0, 0
    while idle < 20:
        try:
            taken += os.write(write_end, bytes(1 << 16))
            idle = 0
        except BlockingIOError:
            idle += 1
        await asyncio.sleep(0.002)
        assert taken < 40 * BLOCK_BYTES
    upload.go_on.set()
    os.close(write_end)
    assert await draining == taken
    os.close(read_end)


async def test_progress_is_told() -> None:
    told: list[int] = []
    async with Archive(MemoryStore()) as archive:
        read_end, write_end = os.pipe()
        sink = await archive.sink()
        writing = asyncio.create_task(asyncio.to_thread(write_all, write_end, bytes(12 * BLOCK_BYTES)))
        await sink.drain(read_end, told.append)
        await writing
        os.close(read_end)
    assert told == sorted(told)
    assert told[-1] == 12 * BLOCK_BYTES


async def test_a_descriptor_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    async with Archive(MemoryStore()) as archive:
        fd = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
        sink = await archive.sink()
        with pytest.raises(ArchiveUnavailable):
            await sink.drain(fd)
        await sink.abort()
        os.close(fd)


async def test_a_thread_that_fails_ends_the_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(cutter: FrameCutter, block: memoryview) -> int:
        raise ArchiveUnavailable("reading the image: Input/output error")

    monkeypatch.setattr(FrameCutter, "_read", read)
    async with Archive(MemoryStore(), threads=4) as archive:
        read_end, write_end = os.pipe()
        sink = await archive.sink()
        with pytest.raises(ArchiveUnavailable):
            await sink.drain(read_end)
        os.close(read_end)
        os.close(write_end)


async def test_an_image_larger_than_an_object_can_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "FRAMES_MAX", 8)
    async with Archive(MemoryStore()) as archive:
        await store_image(archive, 1, bytes(8 * FRAME_BYTES))
        with pytest.raises(ArchiveError):
            await store_image(archive, 2, bytes(8 * FRAME_BYTES + 1))
        assert await archive.crids() == [1]


async def test_a_cancelled_drain_reads_nothing_more() -> None:
    async with Archive(MemoryStore()) as archive:
        read_end, write_end = os.pipe()
        sink = await archive.sink()
        draining = asyncio.create_task(sink.drain(read_end))
        os.write(write_end, b"first")
        while await asyncio.to_thread(bytes_in, read_end):
            pass
        draining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await draining
        os.write(write_end, b"second")
        assert os.read(read_end, 100) == b"second"
        with pytest.raises(ArchiveError):
            await sink.commit(Crid(1))
        os.close(read_end)
        os.close(write_end)


def bytes_in(fd: int) -> int:
    import fcntl
    import termios
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0])


async def test_a_pump_that_nobody_reads_can_be_cancelled() -> None:
    async with Archive(MemoryStore()) as archive:
        await store_image(archive, 1, content(8 * BLOCK_BYTES))
        read_end, write_end = os.pipe()
        pumping = asyncio.create_task((await archive.source(Crid(1))).pump(write_end))
        while not await asyncio.to_thread(bytes_in, read_end):
            pass
        pumping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pumping
        left = bytes_in(read_end)
        os.close(write_end)
        assert len(await asyncio.to_thread(read_all, read_end)) == left


async def test_the_callers_pipe_stays_as_it_was() -> None:
    async with Archive(MemoryStore()) as archive:
        await store_image(archive, 1, b"x" * 1000)
        read_end, write_end = os.pipe()
        await (await archive.source(Crid(1))).pump(write_end)
        assert os.get_blocking(write_end)
        os.write(write_end, b"y")
        os.close(write_end)
        assert read_all(read_end) == b"x" * 1000 + b"y"


async def test_a_pump_into_a_file() -> None:
    data = content(3 * BLOCK_BYTES)
    async with Archive(MemoryStore()) as archive:
        await store_image(archive, 1, data)
        fd = os.memfd_create("file")
        await (await archive.source(Crid(1))).pump(fd)
        assert os.pread(fd, len(data) + 1, 0) == data
        os.close(fd)


def crafted(*frames: tuple[bytes, int]) -> bytes:
    """Return an object whose sums are right, whatever its frames say."""
    entries = b"".join(ENTRY.pack(len(stored), raw_bytes, checksum(stored)) for stored, raw_bytes in frames)
    return header() + b"".join(stored for stored, _ in frames) + trailer(entries, sum(raw for _, raw in frames))


def frame_of(content_bytes: int) -> bytes:
    """Return the start of a zstd frame that says it holds so much (RFC 8878, 3.1.1.1)."""
    return b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + content_bytes.to_bytes(8, "little") + bytes([1, 0, 0])


@pytest.mark.parametrize(("stored", "raw_bytes"), [
    (frame_of(1 << 60), FRAME_BYTES),
    (frame_of(1 << 40), 1),
    (frame_of(0), 1),
    (zstandard.compress(b"a" * FRAME_BYTES), 100),
    (zstandard.compress(b"a" * 100), FRAME_BYTES),
    (zstandard.compress(b"a") + zstandard.compress(b"b"), 1),
    (zstandard.ZstdCompressor(write_content_size=False).compress(b"a"), 1),
    (b"rubbish", 7),
    (zstandard.compress(os.urandom(1000))[:-10], 1000),
])
async def test_hostile_frames_are_refused_without_believing_them(stored: bytes, raw_bytes: int) -> None:
    store = MemoryStore()
    store.contents[key_of(1)] = crafted((stored, raw_bytes))
    async with Archive(store) as archive:
        with pytest.raises(BlobCorrupt):
            await read_image(archive, 1)


async def test_frames_that_are_whole_but_of_another_image_are_refused() -> None:
    ours, other = crafted((zstandard.compress(b"abc"), 3)), crafted((zstandard.compress(b"abd"), 3))
    assert len(ours) == len(other)
    start = len(header())
    store = MemoryStore()
    store.contents[key_of(1)] = ours[:start] + other[start:start + len(zstandard.compress(b"abc"))] + ours[
        start + len(zstandard.compress(b"abc")):]
    async with Archive(store) as archive:
        with pytest.raises(BlobCorrupt, match="damaged"):
            await read_image(archive, 1)


async def test_an_object_of_another_version_is_told_as_such() -> None:
    store = MemoryStore()
    store.contents[key_of(1)] = b"CRDARCH1" + crafted((zstandard.compress(b"abc"), 3))[8:]
    async with Archive(store) as archive:
        with pytest.raises(BlobCorrupt, match="another version of crd"):
            await read_image(archive, 1)


class VastStore(MemoryStore):
    """Says that its object is as large as one likes, and counts what is read of it."""

    def __init__(self, end: bytes, size: int) -> None:
        super().__init__()
        self.end, self.vast, self.asked = end, size, 0

    async def size(self, key: str) -> int:
        return self.vast

    async def read(self, key: str, offset: int, length: int) -> bytes:
        self.asked += length
        return self.end if offset == self.vast - TRAILER.size else bytes(length)


async def test_a_table_beyond_reason_is_not_read() -> None:
    end = trailer(b"", 0)
    for n_frames in (FRAMES_MAX + 1, 1 << 63):
        store = VastStore(struct.pack("<Q", n_frames) + end[8:], 1 << 62)
        async with Archive(store) as archive:
            with pytest.raises(BlobCorrupt):
                await archive.source(Crid(1))
            assert store.asked == TRAILER.size


@pytest.mark.parametrize("sizes", [(0, 10), (10, 0), (10, FRAME_BYTES + 1), (1 << 31, 10)])
async def test_impossible_sizes_in_a_table_are_refused(sizes: tuple[int, int]) -> None:
    entries = ENTRY.pack(*sizes, bytes(16))
    store = MemoryStore()
    store.contents[key_of(1)] = header() + bytes(min(sizes[0], 100)) + trailer(entries, sizes[1])
    async with Archive(store) as archive:
        with pytest.raises(BlobCorrupt):
            await archive.source(Crid(1))


async def test_two_images_flow_at_once_and_none_waits_for_the_other() -> None:
    async with Archive(MemoryStore(), threads=2) as archive:
        idle_read, idle_write = os.pipe()
        idle = await archive.sink()
        waiting = asyncio.create_task(idle.drain(idle_read))
        data = random.Random(3).randbytes(3 * BLOCK_BYTES)
        await store_image(archive, 2, data)
        assert not waiting.done()
        os.write(idle_write, b"at last")
        os.close(idle_write)
        assert await waiting == 7
        os.close(idle_read)
        await idle.abort()


async def test_no_thread_and_no_descriptor_is_left() -> None:
    async with Archive(MemoryStore()) as archive:
        await store_image(archive, 1, content(BLOCK_BYTES))
        await read_image(archive, 1)
        before = set(os.listdir("/proc/self/fd"))
        for crid in range(2, 8):
            await store_image(archive, crid, content(BLOCK_BYTES))
            await read_image(archive, crid)
        assert len(os.listdir("/proc/self/fd")) == len(before)
        assert not [thread for thread in threading.enumerate() if "compress" in thread.name]
