"""How streams flow: in bounded memory, in order whatever the threads do, and to an end whenever they are stopped."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.archive import cutter as cutter_module
from crd.archive.archive import Archive
from crd.archive.cutter import BATCH_BYTES
from crd.archive.pack import BLOCK_BYTES
from crd.archive.reader import StreamReader
from crd.archive.stores.memory import MemoryStore, MemoryUpload
from crd.archive.window import WINDOW_PAGES
from crd.archive.writer import StreamWriter
from crd.errors import ArchiveError, ArchiveUnavailable
from crd.ids import Crid
from crd.native.memory import PAGE_BYTES
from tests.unit.archive.streams import content, read_all, read_image, record, store_image, write_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.archive.stores.store import Part


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("n_pages", [1, 64, 256, 257, 2 * WINDOW_PAGES + 5])
async def test_the_order_is_kept_by_any_number_of_threads(threads: int, n_pages: int) -> None:
    data = record(content(n_pages * PAGE_BYTES))
    async with Archive(MemoryStore(), threads=threads) as archive:
        stored = await store_image(archive, 1, data)
        assert stored.digest == (await archive.source(Crid(1))).manifest.digest.hex()
        assert await read_image(archive, 1) == data


async def test_a_stream_that_trickles_is_one_all_the_same() -> None:
    data = record(content(3 * BLOCK_BYTES))
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
    """Stores nothing before its store says so."""

    def __init__(self, store: SlowStore, key: str) -> None:
        super().__init__(store, key)
        self.go_on = store.go_on

    async def write(self, parts: Sequence[Part]) -> None:
        await self.go_on.wait()
        await super().write(parts)


class SlowStore(MemoryStore):
    """Waits for the word."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def create(self, key: str) -> SlowUpload:
        return SlowUpload(self, key)


async def test_a_slow_store_makes_the_stream_wait() -> None:
    store = SlowStore()
    async with Archive(store) as archive:
        sink = await archive.sink()
        read_end, write_end = os.pipe2(os.O_NONBLOCK)
        os.set_blocking(read_end, True)
        draining = asyncio.create_task(sink.drain(read_end))
        taken, idle = os.write(write_end, record(bytes(1 << 30))[:8]), 0
        chance = random.Random(1)
        while idle < 20:
            try:
                taken += os.write(write_end, chance.randbytes(1 << 16))
                idle = 0
            except BlockingIOError:
                idle += 1
            await asyncio.sleep(0.002)
            assert taken < 20 * BATCH_BYTES
        store.go_on.set()
        os.close(write_end)
        assert await draining == taken
        os.close(read_end)
        await sink.abort()


async def test_progress_is_told() -> None:
    told: list[int] = []
    async with Archive(MemoryStore()) as archive:
        read_end, write_end = os.pipe()
        sink = await archive.sink()
        writing = asyncio.create_task(asyncio.to_thread(write_all, write_end, record(content(4 * BATCH_BYTES))))
        await sink.drain(read_end, told.append)
        await writing
        os.close(read_end)
        await sink.abort()
    assert told == sorted(told)
    assert told[-1] > BATCH_BYTES


async def test_a_descriptor_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    async with Archive(MemoryStore()) as archive:
        fd = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
        sink = await archive.sink()
        with pytest.raises(ArchiveUnavailable):
            await sink.drain(fd)
        await sink.abort()
        os.close(fd)


async def test_a_thread_that_fails_ends_the_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(reader: StreamReader, buffer: memoryview) -> int:
        raise ArchiveUnavailable("reading the image: Input/output error")

    monkeypatch.setattr(StreamReader, "read", read)
    async with Archive(MemoryStore(), threads=4) as archive:
        read_end, write_end = os.pipe()
        sink = await archive.sink()
        with pytest.raises(ArchiveUnavailable):
            await sink.drain(read_end)
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize(("limit", "value", "data"), [
    ("PAGES_MAX", 8, record(bytes(9 * PAGE_BYTES))),
    ("LITERAL_BYTES_MAX", 100, record(b"small") * 10),
])
async def test_an_image_larger_than_is_kept_is_refused(limit: str, value: int, data: bytes,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutter_module, limit, value)
    store = MemoryStore()
    async with Archive(store) as archive:
        await store_image(archive, 1, record(bytes(8 * PAGE_BYTES)))
        with pytest.raises(ArchiveError):
            await store_image(archive, 2, data)
        assert await archive.crids() == [1]
        assert len(store.contents) == 2


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
        await store_image(archive, 1, record(content(8 * BATCH_BYTES)))
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


@pytest.mark.parametrize("call", ["eventfd", "pipe2"])
async def test_who_finds_no_descriptor_left_gives_back_what_it_has(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: int) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    read_end, write_end = os.pipe()
    there = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="Too many open files"):
        StreamReader(read_end)
    if call == "eventfd":
        with pytest.raises(OSError, match="Too many open files"):
            StreamWriter(write_end)
    assert os.listdir("/proc/self/fd") == there
    os.close(read_end)
    os.close(write_end)


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


async def test_two_images_flow_at_once_and_none_waits_for_the_other() -> None:
    async with Archive(MemoryStore(), threads=2) as archive:
        idle_read, idle_write = os.pipe()
        idle = await archive.sink()
        waiting = asyncio.create_task(idle.drain(idle_read))
        data = record(content(3 * BLOCK_BYTES))
        await store_image(archive, 2, data)
        assert not waiting.done()
        os.write(idle_write, b"at last")
        os.close(idle_write)
        assert await waiting == 7
        os.close(idle_read)
        await idle.abort()


async def test_no_thread_and_no_descriptor_is_left() -> None:
    others = set(threading.enumerate())
    async with Archive(MemoryStore()) as archive:
        await store_image(archive, 1, content(BLOCK_BYTES))
        await read_image(archive, 1)
        before = set(os.listdir("/proc/self/fd"))
        for crid in range(2, 8):
            await store_image(archive, crid, content(BLOCK_BYTES))
            await read_image(archive, crid)
        assert len(os.listdir("/proc/self/fd")) == len(before)
        assert len(_compressing(others)) <= 3, "two that compress and one that reads are used again"
    assert not _compressing(others)


def _compressing(others: set[threading.Thread]) -> list[str]:
    return [thread.name for thread in set(threading.enumerate()) - others if "compress" in thread.name]
