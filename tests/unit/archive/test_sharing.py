"""Images that share pages: each whole whatever becomes of the others, and nothing kept that none needs."""

from __future__ import annotations

import asyncio
import os
import types
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crd.archive.archive import Archive
from crd.archive.manifest import HEAD
from crd.archive.names import image_key, numbered, pack_key
from crd.archive.references import Sharing
from crd.archive.stores.memory import MemoryStore, MemoryUpload
from crd.errors import ArchiveError, ArchiveFull, ArchiveUnavailable, BlobCorrupt, BlobMissing
from crd.ids import Crid
from crd.native.memory import PAGE_BYTES
from tests.unit.archive.streams import read_image, store_image, stream, write_all

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator


class AwayStore(MemoryStore):
    """Removes no object with this in its name, and makes no such image visible."""

    away = "nothing"

    async def delete(self, key: str) -> None:
        if self.away in key:
            raise ArchiveUnavailable("it is away")
        await super().delete(key)

    async def create(self, key: str) -> MemoryUpload:
        if self.away in key and key.endswith(".image"):
            raise ArchiveUnavailable("it is away")
        return await super().create(key)


def packs(store: MemoryStore) -> set[int]:
    return set(numbered(dict.fromkeys(store.contents, 0), "pack"))


async def test_only_new_pages_are_stored() -> None:
    store = MemoryStore()
    async with Archive(store) as archive:
        first = await store_image(archive, 1, stream(range(1000)))
        second = await store_image(archive, 2, stream([*range(500), *range(5000, 5010), *range(510, 1000)]), base=1)
        assert second.stored_bytes < 10 * PAGE_BYTES + 5000 < first.stored_bytes
        same = await store_image(archive, 3, stream(range(1000)), base=2)
        assert same.stored_bytes < 5000, "pages of the base's base are known, too"
        assert len(packs(store)) == 2
        assert await archive.sharing(Crid(1)) == Sharing(shared_pages=1000, shared_packs=1)
        assert await archive.sharing(Crid(3)) == Sharing(shared_pages=1000, shared_packs=1)
        assert await archive.sharing(Crid(2)) == Sharing(10, 1, 990, 1)
        await archive.forget(Crid(2))
        await archive.forget(Crid(3))
        assert await archive.sharing(Crid(1)) == Sharing(1000, 1)
        assert await archive.sharing(Crid(3)) == Sharing()


async def test_equal_pages_of_an_image_are_stored_once() -> None:
    async with Archive(MemoryStore()) as archive:
        stored = await store_image(archive, 1, stream([1] * 3000))
        assert stored.stored_bytes < 3 * PAGE_BYTES
        assert await read_image(archive, 1) == stream([1] * 3000)


HISTORIES = st.lists(st.one_of(
    st.tuples(st.just("store"), st.lists(st.integers(0, 30), max_size=20), st.integers(0, 10)),
    st.tuples(st.just("forget"), st.integers(0, 10)),
    st.just(("restart",)),
), max_size=25)


@given(HISTORIES)
@settings(max_examples=60, deadline=None)
async def test_any_image_can_be_forgotten_in_any_order(history: list[tuple[object, ...]]) -> None:
    store, there = MemoryStore(), dict[int, bytes]()
    archive = await Archive(store).__aenter__()
    for crid, step in enumerate(history, 1):
        match step:
            case ("store", list(numbers), int(base)):
                there[crid] = stream(numbers)
                await store_image(archive, crid, there[crid], base)
            case ("forget", int(which)):
                await archive.forget(Crid(which))
                there.pop(which, None)
            case _:
                archive = await Archive(store).__aenter__()
    for crid, data in there.items():
        assert await read_image(archive, crid) == data
    for crid in there:
        await archive.forget(Crid(crid))
    assert store.contents == {}


async def test_a_base_may_be_forgotten_while_the_next_image_is_on_its_way() -> None:
    store = MemoryStore()
    async with Archive(store) as archive:
        await store_image(archive, 1, stream(range(100)))
        sink = await archive.sink(Crid(1))
        await archive.forget(Crid(1))
        assert packs(store), "it is held"
        await sink.abort()
        assert store.contents == {}


async def test_what_a_daemon_that_was_killed_left_is_removed() -> None:
    store = MemoryStore()
    async with Archive(store) as archive:
        await store_image(archive, 1, stream(range(100)))
        await store_image(archive, 2, stream(range(50, 150)), base=1)
    orphan = MemoryUpload(store, pack_key(7))
    await orphan.write([b"a pack whose image never came"])
    await orphan.commit()
    del store.contents[image_key(1)]  # and its pack is still needed
    async with Archive(store) as archive:
        assert len(packs(store)) == 2
        assert 7 not in packs(store)
        assert await read_image(archive, 2) == stream(range(50, 150))


async def test_no_pack_is_removed_while_an_image_cannot_be_read() -> None:
    store = MemoryStore()
    async with Archive(store) as archive:
        await store_image(archive, 1, stream(range(100)))
        await store_image(archive, 2, stream(range(50, 150)), base=1)
    whole = store.contents[image_key(2)]
    store.contents[image_key(2)] = b"torn"
    async with Archive(store) as archive:
        await archive.forget(Crid(1))
        assert len(packs(store)) == 2, "image 2 may need them"
        assert await archive.sweep() == []
        assert "image 2 cannot be read" in archive.hindrance
        store.contents[image_key(2)] = whole
        assert await read_image(archive, 2) == stream(range(50, 150))
        await archive.forget(Crid(2))
        assert not archive.hindrance
        assert len(await archive.sweep()) == 1, "what is known of"
    async with Archive(store):
        assert store.contents == {}


async def test_an_image_that_is_forgotten_while_it_is_about_to_be_read_stands_in_nobodys_way() -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    class SlowStore(MemoryStore):
        async def read(self, key: str, offset: int, length: int) -> bytes:
            if key == image_key(1):
                reached.set()
                await go_on.wait()
            return await super().read(key, offset, length)

    store = SlowStore()
    async with Archive(store) as archive:
        await store_image(archive, 1, stream(range(8)))
        await store_image(archive, 2, stream(range(4, 12)), base=1)
    async with Archive(store, away=True) as archive:
        arriving = asyncio.create_task(archive.arrive())
        await reached.wait()
        await archive.forget(Crid(1))
        go_on.set()
        await arriving
        await archive.forget(Crid(2))
        assert not packs(store)


async def test_an_image_whose_list_of_packs_is_damaged_costs_no_pack() -> None:
    store = MemoryStore()
    async with Archive(store) as archive:
        await store_image(archive, 1, stream(range(100)))
    whole = store.contents[image_key(1)]
    store.contents[image_key(1)] = whole[:HEAD.size] + bytes([whole[HEAD.size] ^ 4]) + whole[HEAD.size + 1:]
    async with Archive(store) as archive:
        store.contents[image_key(1)] = whole
        assert await read_image(archive, 1) == stream(range(100))


@pytest.mark.parametrize("damage", ["flip", "remove"])
async def test_no_new_image_needs_a_pack_that_was_found_damaged(damage: str) -> None:
    store = MemoryStore()
    async with Archive(store) as archive:
        stored = await store_image(archive, 1, stream(range(100)))
        [number] = packs(store)
        content = bytearray(store.contents.pop(pack_key(number)))
        if damage == "flip":
            content[5000] ^= 1
            store.contents[pack_key(number)] = bytes(content)
        with pytest.raises((BlobCorrupt, BlobMissing)):
            await (await archive.source(Crid(1))).verify(stored.digest)
        again = await store_image(archive, 2, stream(range(100)), base=1)
        await (await archive.source(Crid(2))).verify(again.digest)
        assert await read_image(archive, 2) == stream(range(100))


@pytest.mark.parametrize(("damage", "hurt"), [
    (None, [1, 2, 4]), (70 * PAGE_BYTES, [1, 4]), (5000, [1, 2, 4]), (-20, [1, 2, 4]), (-1, [1, 2, 4])])
async def test_damage_hurts_the_images_that_need_what_is_damaged(damage: int | None, hurt: list[int]) -> None:
    store = MemoryStore()
    async with Archive(store) as archive:
        await store_image(archive, 1, stream(range(128)))
        [first] = packs(store)
        await store_image(archive, 2, stream([*range(64), *range(1000, 1010)]), base=1)
        await store_image(archive, 3, stream(range(2000, 2010)))
        await store_image(archive, 4, stream(range(128)), base=1)
        assert await archive.hurt_by(pack_key(first)) == []
        content = bytearray(store.contents.pop(pack_key(first)))
        if damage is not None:
            content[damage] ^= 1
            store.contents[pack_key(first)] = bytes(content)
        assert await archive.hurt_by(pack_key(first)) == hurt
        assert await archive.hurt_by(image_key(1)) == [], "that is known"


class FailingUpload(MemoryUpload):
    """Has no room for an image's manifest."""

    async def commit(self) -> None:
        if self._key.endswith(".image"):
            raise ArchiveFull("the store is full")
        await super().commit()


class FailingStore(MemoryStore):
    """Takes packs only."""

    async def create(self, key: str) -> FailingUpload:
        return FailingUpload(self, key)


async def test_a_commit_that_fails_leaves_no_pack() -> None:
    store = FailingStore()
    async with Archive(store) as archive:
        with pytest.raises(ArchiveFull):
            await store_image(archive, 1, stream(range(100)))
        assert store.contents == {}


async def test_a_pack_that_could_not_be_removed_with_its_image_is_by_a_sweep() -> None:
    store = AwayStore()
    async with Archive(store) as archive:
        await store_image(archive, 1, stream([1, 2, 3]))
        await store_image(archive, 2, stream([3, 4, 5]), base=1)
        await archive.forget(Crid(2))
        store.away = ".pack"
        with pytest.raises(ArchiveUnavailable):
            await archive.forget(Crid(1))
        with pytest.raises(ArchiveUnavailable):
            await archive.sweep()
        assert list(store.contents) == (left := [pack_key(pack) for pack in packs(store)])
        store.away = "nothing"
        assert await archive.sweep() == left
        assert await archive.sweep() == []
        assert store.contents == {}


@given(HISTORIES, st.data())
@settings(max_examples=40, deadline=None)
async def test_a_sweep_removes_what_a_store_that_was_away_had_to_keep(history: list[tuple[object, ...]],
                                                                     data: st.DataObject) -> None:
    """While images are under way, too: what they share is held for them."""
    store, there, sink = AwayStore(), dict[int, bytes](), None
    async with Archive(store) as archive:
        for crid, step in enumerate(history, 1):
            store.away = data.draw(st.sampled_from(["nothing", ".pack", ".image", "."]), "away")
            match step:
                case ("store", list(numbers), int(base)):
                    with suppress(ArchiveUnavailable):
                        await store_image(archive, crid, stream(numbers), base)
                        there[crid] = stream(numbers)
                case ("forget", int(which)):
                    with suppress(ArchiveUnavailable):
                        await archive.forget(Crid(which))
                    if image_key(which) not in store.contents:
                        there.pop(which, None)
                case _:
                    with suppress(ArchiveUnavailable):
                        await archive.sweep()
                    if sink is None and there:
                        sink = await archive.sink(Crid(max(there)))
        store.away = "nothing"
        await archive.sweep()
        for crid, content in there.items():
            assert await read_image(archive, crid) == content
        if sink:
            await sink.abort()
        await archive.sweep()
        assert len(packs(store)) == len({pack for crid in there for pack, _ in await archive._references.sound(crid)})


async def test_a_crid_that_is_taken_changes_nothing() -> None:
    store = MemoryStore()
    async with Archive(store) as archive:
        await store_image(archive, 1, stream(range(100)))
        before = dict(store.contents)
        with pytest.raises(ArchiveError):
            await store_image(archive, 1, stream(range(200)), base=1)
        assert store.contents == before
        assert await read_image(archive, 1) == stream(range(100))


@types.coroutine
def cancelled_at(nth: int, work: Coroutine[Any, Any, object]) -> Generator[Any, None, None]:
    """Cancel what work waits for when it waits for the nth time."""
    waits, thrown = 0, None
    with suppress(StopIteration):
        while True:
            awaited = work.throw(thrown) if thrown else work.send(None)
            waits, thrown = waits + 1, None
            if waits == nth:
                awaited.cancel()
            try:
                yield awaited
            except BaseException as error:  # noqa: BLE001  passed on
                thrown = error


async def test_wherever_a_checkpoint_is_cancelled_it_keeps_no_pack_of_others() -> None:
    kept = False

    async def store_following(archive: Archive, fd: int) -> None:
        nonlocal kept
        sink = await archive.sink(Crid(1))
        try:
            await sink.drain(fd)
            await sink.commit(Crid(2))
            kept = True
        finally:
            await asyncio.shield(sink.abort())

    for nth in count(1):
        store, kept, cancelled = MemoryStore(), False, False
        async with Archive(store, threads=1) as archive:
            await store_image(archive, 1, stream(range(8)))
            read_end, write_end = os.pipe()
            write_all(write_end, stream(range(4, 12)))  # as much as a pipe takes
            try:
                await cancelled_at(nth, store_following(archive, read_end))
            except asyncio.CancelledError:
                cancelled = True
            await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
            os.close(read_end)
            assert await archive.crids() == [1, 2][:1 + kept]
            for crid in await archive.crids():
                await archive.forget(crid)
            assert not store.contents, f"cancelled when it waited for the {nth}. time"
        if not cancelled:
            break
    assert nth > 5


async def test_an_image_of_a_long_history_needs_few_packs() -> None:
    """Each image has one page of its own, which stays; packs of the fewest pages are merged, and nothing else moves."""
    store, numbers = MemoryStore(), list(range(300))
    async with Archive(store) as archive:
        first = await store_image(archive, 1, stream(numbers))
        moved = []
        for crid in range(2, 140):
            numbers[crid] = 10_000 + crid
            stored = await store_image(archive, crid, stream(numbers), base=crid - 1)
            source = await archive.source(Crid(crid))
            assert len(source.manifest.packs) <= 64
            moved.append(source.manifest.packs[0][1])
            if crid % 3:
                await archive.forget(Crid(crid - 1))
        assert sum(n == 1 for n in moved) > 0.9 * len(moved), "a merge is rare"
        assert 40 < max(moved) < 200, "and takes along what is small only"
        await (await archive.source(Crid(139))).verify(stored.digest)
        assert await read_image(archive, 139) == stream(numbers)
        assert stored.stored_bytes < first.stored_bytes / 50
        for crid in await archive.crids():
            await archive.forget(crid)
        assert store.contents == {}


async def test_what_is_left_of_a_pack_that_was_mostly_written_to_is_stored_again() -> None:
    async with Archive(MemoryStore()) as archive:
        await store_image(archive, 1, stream(range(100)))
        await store_image(archive, 2, stream([*range(39), *range(1000, 1061)]), base=1)
        packs = {crid: (await archive.source(Crid(crid))).manifest.packs for crid in (1, 2)}
        assert [needed for _, needed in packs[2]] == [61, 39]
        assert packs[2][1][0] == packs[1][0][0]
        await store_image(archive, 3, stream([*range(39), *range(1000, 1061)]), base=2)
        packs[3] = (await archive.source(Crid(3))).manifest.packs
        assert [needed for _, needed in packs[3]] == [39, 61]
        assert packs[3][1][0] == packs[2][0][0]
        await archive.forget(Crid(1))
        await archive.forget(Crid(2))
        assert await read_image(archive, 3) == stream([*range(39), *range(1000, 1061)])
