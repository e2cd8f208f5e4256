"""Images whose stream tells only what has changed since another: kept whole, byte for byte."""

from __future__ import annotations

import asyncio
import os
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crd.archive.archive import Archive
from crd.archive.heads import Heads
from crd.archive.stores.memory import MemoryStore
from crd.errors import ArchiveError, BlobCorrupt
from crd.ids import Crid
from crd.image.framing import FRAME
from crd.image.profile import PAGE_BYTES, PageRun, Pages
from crd.image.since import PagesSince, records
from tests.unit.archive.streams import read_image, record, write_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.archive.sink import ImageSink, Stored

PID = 7
Memory = dict[int, int]
"""Content of pages by their number; a page that is not there holds zeros."""


def content(number: int) -> bytes:
    return random.Random(number).randbytes(PAGE_BYTES)


def runs_of(pages: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for page in sorted(pages):
        if runs and runs[-1][0] + runs[-1][1] == page * PAGE_BYTES:
            runs[-1] = (runs[-1][0], runs[-1][1] + PAGE_BYTES)
        else:
            runs.append((page * PAGE_BYTES, PAGE_BYTES))
    return runs


def since(memory: Memory, changed: set[int], pages_max: int, pid: int = PID) -> bytes:
    """Return what an engine sends of memory in which only these pages have changed."""
    kept = runs_of([page for page in range(pages_max) if page not in changed])
    sent = b""
    for part in records(pid, kept, runs_of([page for page in memory if page in changed])):
        data = b"".join(content(memory[run.address // PAGE_BYTES + index])
                        for run in part.runs for index in range(run.pages))
        sent += record(part.encode() + data, PagesSince.record_type)
    return record(b"head") + sent + record(b"tail" * 3)


def whole(memory: Memory, pid: int = PID) -> bytes:
    """Return what an engine sends that knows of no image before."""
    sent = b""
    for at, length in runs_of(list(memory)):
        for start in range(at, at + length, 200 * PAGE_BYTES):
            pages = range(start // PAGE_BYTES, min(start // PAGE_BYTES + 200, (at + length) // PAGE_BYTES))
            head = Pages(pid=pid, runs=[PageRun(address=start, pages=len(pages))]).encode()
            sent += record(head + b"".join(content(memory[page]) for page in pages), Pages.record_type)
    return record(b"head") + sent + record(b"tail" * 3)


def memory_in(stream: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield pid, page and content of all PAGES; nothing else but the literals may be there."""
    at = 0
    while at < len(stream):
        kind, length = FRAME.unpack_from(stream, at)
        payload = stream[at + FRAME.size:at + FRAME.size + length]
        if kind == Pages.record_type:
            found, skip = Pages.decode(payload), 0
            for run in found.runs:
                for index in range(run.pages):
                    yield found.pid, run.address // PAGE_BYTES + index, bytes(found.data[skip:skip + PAGE_BYTES])
                    skip += PAGE_BYTES
        else:
            assert kind == 99, kind
        at += FRAME.size + length
    assert at == len(stream)


async def follow(archive: Archive, crid: int, data: bytes, base: int,
                 otherwise: bytes | None = None) -> tuple[Stored, ImageSink]:
    """Store what an engine sends; ``otherwise`` if the archive does not follow the image before."""
    sink = await archive.sink(Crid(base), follow=True)
    data = data if sink.follows or otherwise is None else otherwise
    read_end, write_end = os.pipe()
    writing = asyncio.create_task(asyncio.to_thread(write_all, write_end, data))
    try:
        assert await sink.drain(read_end) == len(data)
        await writing
        return await sink.commit(Crid(crid)), sink
    finally:
        os.close(read_end)
        await asyncio.gather(writing, return_exceptions=True)
        await sink.abort()


async def first(archive: Archive, crid: int, memory: Memory) -> None:
    _, sink = await follow(archive, crid, whole(memory), 1000)
    assert not sink.follows


def assert_is(stream: bytes, memory: Memory) -> None:
    assert list(memory_in(stream)) == [(PID, page, content(memory[page])) for page in sorted(memory)]


async def test_what_has_not_changed_is_not_sent_and_is_there() -> None:
    memory = {page: page for page in range(3000)}
    store = MemoryStore()
    async with Archive(store) as archive:
        await first(archive, 1, memory)
        assert_is(await read_image(archive, 1), memory)
        changed = {5, 6, 7, 255, 256, 1500, 2999, 3500}
        later = {**memory, **{page: page + 10_000 for page in changed if page != 7}}
        del later[7]
        data = since(later, changed, 4000)
        assert len(data) < 10 * PAGE_BYTES
        stored, sink = await follow(archive, 2, data, 1)
        assert sink.follows
        assert stored.image_bytes > len(later) * PAGE_BYTES
        assert stored.stored_bytes < 9 * PAGE_BYTES + 3000
        assert_is(await read_image(archive, 2), later)
        await archive.forget(Crid(1))
        assert_is(await read_image(archive, 2), later)


async def test_what_was_made_whole_verifies() -> None:
    memory = {page: page for page in range(300)}
    async with Archive(MemoryStore()) as archive:
        await first(archive, 1, memory)
        stored, _ = await follow(archive, 2, since({**memory, 9: 1}, {9}, 400), 1)
        await (await archive.source(Crid(2))).verify(stored.digest)


async def test_an_image_is_followed_beyond_the_end_of_the_daemon() -> None:
    memory = {page: page for page in range(600)}
    store = MemoryStore()
    async with Archive(store) as archive:
        await first(archive, 1, memory)
        memory = {**memory, 9: 1}
        stored, _ = await follow(archive, 2, since(memory, {9}, 700), 1)
    async with Archive(store) as archive:
        await archive.recall(Crid(2), stored.digest)
        memory = {**memory, 10: 2, 650: 3}
        stored, sink = await follow(archive, 3, since(memory, {10, 650}, 700), 2)
        assert sink.follows
        assert_is(await read_image(archive, 3), memory)
        await (await archive.source(Crid(3))).verify(stored.digest)


@pytest.mark.parametrize("digest", ["", "00" * 32])
async def test_another_image_than_is_meant_is_not_followed(digest: str) -> None:
    store = MemoryStore()
    async with Archive(store) as archive:
        await first(archive, 1, {page: page for page in range(10)})
    async with Archive(store) as archive:
        await archive.recall(Crid(1), digest)
        await archive.recall(Crid(2), digest)
        for crid in (1, 2):
            sink = await archive.sink(Crid(crid), follow=True)
            assert not sink.follows
            await sink.abort()


HISTORIES = st.lists(st.tuples(
    st.dictionaries(st.integers(0, 600), st.one_of(st.none(), st.integers(0, 50)), max_size=40),  # None: given back
    st.sets(st.integers(0, 600), max_size=10),  # written as they were
    st.booleans(),  # the daemon starts again
), max_size=8)


@given(HISTORIES)
@settings(max_examples=40, deadline=None)
async def test_any_history_is_kept(history: list[tuple[dict[int, int | None], set[int], bool]]) -> None:
    store, memory = MemoryStore(), {page: page for page in range(0, 520, 2)}
    archive = await Archive(store).__aenter__()
    await first(archive, 1, memory)
    for crid, (writes, touched, again) in enumerate(history, 2):
        for page, number in writes.items():
            if number is None:
                memory.pop(page, None)
            else:
                memory[page] = number
        if again:
            archive = await Archive(store).__aenter__()
        _, sink = await follow(archive, crid, since(memory, {*writes, *touched}, 601), crid - 1, whole(memory))
        assert not (again and sink.follows), "what an image was like is not remembered"
        assert_is(await read_image(archive, crid), memory)
        if crid > 2:
            await archive.forget(Crid(crid - 2))


async def test_several_processes() -> None:
    one, two = {page: page for page in range(20)}, {page: page + 500 for page in range(10, 40)}
    async with Archive(MemoryStore()) as archive:
        await follow(archive, 2, whole(one) + whole(two, pid=8), 77)
        two[11] = 1
        await follow(archive, 3, since(one, set(), 50) + since(two, {11}, 50, pid=8), 2)
        assert list(memory_in(await read_image(archive, 3))) == [
            *((PID, page, content(number)) for page, number in sorted(one.items())),
            *((8, page, content(number)) for page, number in sorted(two.items()))]


async def test_nothing_follows_what_is_not_there_or_known_to_be_damaged() -> None:
    store, memory = MemoryStore(), {page: page for page in range(100)}
    async with Archive(store) as archive:
        await first(archive, 1, memory)
        sink = await archive.sink(Crid(77), follow=True)
        assert not sink.follows, "there is no such image"
        await sink.abort()
        number = next(key for key in store.contents if key.endswith(".pack"))
        store.contents[number] = store.contents[number][:-1]
        with pytest.raises(BlobCorrupt):
            await read_image(archive, 1)
        sink = await archive.sink(Crid(1), follow=True)
        assert not sink.follows
        await sink.abort()
        await archive.forget(Crid(1))
        sink = await archive.sink(Crid(1), follow=True)
        assert not sink.follows
        await sink.abort()


def told(kept: list[tuple[int, int]], runs: list[tuple[int, int]]) -> bytes:
    return PagesSince(pid=PID, kept=[PageRun(address=at, pages=n) for at, n in kept],
                      runs=[PageRun(address=at, pages=n) for at, n in runs]).encode()


@pytest.mark.parametrize("payload", [
    told([(0, 2)], [(PAGE_BYTES, 1)]) + bytes(PAGE_BYTES),
    told([], [(PAGE_BYTES, 1), (PAGE_BYTES, 1)]) + bytes(2 * PAGE_BYTES),
    told([(1, 1)], []),
    told([(0, 0)], []),
    told([(PAGE_BYTES, (1 << 64) - 1)], []),
    told([], [(0, 2)]) + bytes(PAGE_BYTES),
    told([], [(0, 257)]) + bytes(257 * PAGE_BYTES),
    told([(at * PAGE_BYTES, 1) for at in range(300)], []),
    told([], [(at * PAGE_BYTES, 1) for at in range(256)]) + bytes(256 * PAGE_BYTES),
    told([(0, 1)], [])[:-3],
    b"",
    b"\xff" * 12,
], ids=repr)
async def test_a_stream_that_no_engine_writes_is_refused(payload: bytes) -> None:
    async with Archive(MemoryStore()) as archive:
        await first(archive, 1, {0: 1})
        with pytest.raises(ArchiveError):
            await follow(archive, 2, record(payload, PagesSince.record_type) + record(b"tail"), 1)
        assert await archive.crids() == [1]


async def test_what_follows_nothing_is_refused() -> None:
    async with Archive(MemoryStore()) as archive:
        with pytest.raises(ArchiveError, match="nobody knows since when"):
            await follow(archive, 2, since({}, set(), 10), 1)
        assert await archive.crids() == []


async def test_heads_are_bounded() -> None:
    async with Archive(MemoryStore()) as archive:
        await first(archive, 1, {page: page for page in range(100)})
        head = archive._heads.get(1)
        assert head
        heads = Heads(2 * head.bytes)
        for crid in (1, 2, 3):
            heads.put(crid, head)
        assert [crid for crid in (1, 2, 3) if heads.get(crid)] == [2, 3]
        heads.drop(3)
        assert heads.get(3) is None
