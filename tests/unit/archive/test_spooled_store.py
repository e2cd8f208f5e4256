"""The spool: what is acknowledged reaches the store, whenever that comes back and whoever is killed meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.archive.archive import Archive
from crd.archive.names import image_key, pack_key
from crd.archive.stores import spooled
from crd.archive.stores.local import LocalStore
from crd.archive.stores.memory import MemoryStore, MemoryUpload
from crd.archive.stores.s3 import S3Store
from crd.archive.stores.s3_object import PART_BYTES
from crd.archive.stores.spooled import SpooledStore
from crd.errors import ArchiveError, ArchiveFull, ArchiveUnavailable, BlobMissing
from crd.ids import Crid
from tests.support.faulty import FaultyProxy
from tests.unit.archive.spooling import pages
from tests.unit.archive.streams import read_image, store_image, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.seaweed import SeaweedServer


ROOT = Path(__file__).parents[3]
SAID = ("stored", "forgetting", "forgotten")


class FarStore(MemoryStore):
    """Can be away, and be slow; remembers the order in which objects came."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.asked = 0
        self.order: list[str] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    def _ask(self) -> None:
        self.asked += 1
        if self.away:
            raise ArchiveUnavailable("far away", hint="Wait.")

    async def create(self, key: str) -> FarUpload:
        self._ask()
        return FarUpload(self, key)

    async def read(self, key: str, offset: int, length: int) -> bytes:
        self._ask()
        return await super().read(key, offset, length)

    async def objects(self) -> dict[str, int]:
        self._ask()
        return await super().objects()

    async def delete(self, key: str) -> None:
        self._ask()
        await super().delete(key)

    async def clear_torn(self) -> int:
        self._ask()
        return await super().clear_torn()


class FarUpload(MemoryUpload):
    """Commits when it may."""

    _store: FarStore

    async def commit(self) -> None:
        await self._store.go_on.wait()
        self._store._ask()
        await super().commit()
        self._store.order.append(self._key)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spooled, "_PAUSE_SECONDS", (0.02, 0.05))


@pytest.fixture
def far() -> FarStore:
    return FarStore()


@asynccontextmanager
async def moving(store: SpooledStore) -> AsyncIterator[None]:
    task = asyncio.create_task(store.run())
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def opened(path: Path, far: MemoryStore | S3Store, capacity_bytes: int = 1 << 30) -> SpooledStore:
    store = SpooledStore(LocalStore(path), far, capacity_bytes)
    await store.open()
    return store


async def put(store: SpooledStore | MemoryStore, key: str, content: bytes) -> None:
    upload = await store.create(key)
    await upload.write([content])
    await upload.commit()


async def moved(store: SpooledStore) -> None:
    deadline = time.monotonic() + 300  # 99 MB past half of the requests that fail took a minute at load 19
    while store.waiting.objects:
        assert time.monotonic() < deadline, store.waiting
        await asyncio.sleep(0.01)


async def test_what_is_spooled_reaches_the_store_in_order(tmp_path: Path, far: FarStore) -> None:
    store = await opened(tmp_path / "spool", far)
    keys = [key for number in range(10) for key in (pack_key(99 - number), image_key(number))]
    for key in keys:
        await put(store, key, key.encode())
    assert far.contents == {}
    assert store.waiting.objects == 20
    async with moving(store):
        await moved(store)
    assert far.order == keys
    assert far.contents == {key: key.encode() for key in keys}
    assert list((tmp_path / "spool").iterdir()) == []
    assert await store.read(keys[0], 0, 99) == keys[0].encode()


async def test_what_a_killed_daemon_left_is_moved_packs_first(tmp_path: Path, far: FarStore) -> None:
    before = await opened(tmp_path / "spool", far)
    for key in (image_key(1), pack_key(7), image_key(2), pack_key(8)):
        await put(before, key, key.encode())
    half = await before.create("half")
    await half.write([b"torn"])
    assert len(list((tmp_path / "spool").iterdir())) == 5
    again = await opened(tmp_path / "spool", far)
    assert len(await again.objects()) == 4
    async with moving(again):
        await moved(again)
    assert far.order == [pack_key(7), pack_key(8), image_key(1), image_key(2)]
    assert list((tmp_path / "spool").iterdir()) == []
    await half.abort()


async def test_what_the_store_took_before_the_kill_is_not_asked_twice(tmp_path: Path, far: FarStore) -> None:
    store = await opened(tmp_path / "spool", far)
    for key in ("a-same", "b-other"):
        await put(store, key, key.encode())
    far.contents["a-same"] = b"a-same"
    far.contents["b-other"] = b"by somebody else"
    again = await opened(tmp_path / "spool", far)
    async with moving(again):
        while again.waiting.objects > 1:
            await asyncio.sleep(0.01)
        while not again.waiting.error:
            await asyncio.sleep(0.01)
    assert "exists already" in again.waiting.error
    assert far.contents["b-other"] == b"by somebody else"
    assert again.waiting.objects == 1


async def test_while_the_store_is_away_all_goes_on_in_the_spool(tmp_path: Path, far: FarStore) -> None:
    store = await opened(tmp_path / "spool", far)
    async with moving(store), Archive(store) as archive:
        await store_image(archive, 1, stream(range(100)))
        await moved(store)
        far.away = True
        second = await store_image(archive, 2, stream(range(50, 150)), base=1)
        await store_image(archive, 3, stream(range(60, 160)), base=2)
        await (await archive.source(Crid(2))).verify(second.digest)
        assert await read_image(archive, 2) == stream(range(50, 150))
        assert await archive.crids() == [Crid(1), Crid(2), Crid(3)]
        assert (await archive.size()).images == 3
        with pytest.raises(ArchiveUnavailable) as away:
            await archive.source(Crid(1))
        assert "far away" in away.value.message
        await archive.forget(Crid(3))
        assert await archive.crids() == [Crid(1), Crid(2)]
        assert "far away" in store.waiting.error
        far.away = False
        await moved(store)
        assert sorted(far.contents) == sorted(await store.objects())
        assert not store.waiting.error
        assert await read_image(archive, 1) == stream(range(100))
        assert await read_image(archive, 2) == stream(range(50, 150))
    async with Archive(far) as archive:
        assert await read_image(archive, 2) == stream(range(50, 150)), "the store alone has it"


async def test_a_store_that_does_not_answer_is_left_alone(tmp_path: Path, far: FarStore,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spooled, "_PAUSE_SECONDS", (60, 60))
    far.contents["a"] = b"1"
    store = await opened(tmp_path / "spool", far)
    assert await store.read("a", 0, 1) == b"1"
    far.away = True
    for _ in range(5):
        with pytest.raises(ArchiveUnavailable):
            await store.read("a", 0, 1)
    assert far.asked == 2


async def test_a_full_spool_takes_nothing_and_keeps_what_it_has(tmp_path: Path, far: FarStore) -> None:
    far.away = True
    store = await opened(tmp_path / "spool", far, capacity_bytes=10_000)
    far.away = False
    await store.objects()
    far.away = True
    async with moving(store):
        await put(store, "a", bytes(6000))
        upload = await store.create("b")
        await upload.write([bytes(3000)])
        with pytest.raises(ArchiveFull) as full:
            await upload.write([bytes(3000)])
        assert "s3.spool_size" in full.value.hint
        await upload.abort()
        assert [path.name for path in (tmp_path / "spool").iterdir()] == ["a"]
        await put(store, "c", bytes(4000))
        with pytest.raises(ArchiveFull):
            await put(store, "d", b"1")
        far.away = False
        await moved(store)
        await put(store, "d", bytes(10_000))
        await moved(store)
    assert {key: len(content) for key, content in far.contents.items()} == {"a": 6000, "c": 4000, "d": 10_000}


@pytest.mark.root
async def test_a_full_disk_of_the_spool(tmp_path: Path, far: FarStore) -> None:
    spool = tmp_path / "spool"
    spool.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "crd-test", spool], check=True)
    try:
        store = await opened(spool, far)
        async with Archive(store) as archive:
            whole = await store_image(archive, 1, stream(range(100)))
            (spool / "filler").write_bytes(bytes(os.statvfs(spool).f_bavail * 4096 - 200_000))
            with pytest.raises(ArchiveFull):
                await store_image(archive, 2, os.urandom(600_000))
            (spool / "filler").unlink()
            assert await archive.crids() == [Crid(1)]
            assert len(list(spool.iterdir())) == 2
            await (await archive.source(Crid(1))).verify(whole.digest)
            async with moving(store):
                await moved(store)
                await store_image(archive, 3, stream(range(50, 120)), base=1)
                await moved(store)
            assert await read_image(archive, 3) == stream(range(50, 120))
    finally:
        subprocess.run(["umount", spool], check=True)


async def test_an_object_that_is_deleted_while_it_is_moved(tmp_path: Path, far: FarStore) -> None:
    store = await opened(tmp_path / "spool", far)
    far.go_on.clear()
    for key in ("a", "empty", "b"):
        await put(store, key, b"" if key == "empty" else b"content")
    async with moving(store):
        while not store._moving:
            await asyncio.sleep(0.01)
        assert store._moving[0] == "a"
        await store.delete("a")
        await store.delete("empty")
        far.go_on.set()
        await moved(store)
    assert list(far.contents) == ["b"]
    assert list(await store.objects()) == ["b"]
    with pytest.raises(BlobMissing):
        await store.read("a", 0, 1)
    assert list((tmp_path / "spool").iterdir()) == []


async def test_what_somebody_removed_from_the_spool_holds_up_nothing(tmp_path: Path, far: FarStore,
                                                                     caplog: pytest.LogCaptureFixture) -> None:
    store = await opened(tmp_path / "spool", far)
    for key in ("a", "b"):
        await put(store, key, b"content")
    (tmp_path / "spool" / "a").unlink()
    async with moving(store):
        await moved(store)
    assert list(far.contents) == list(await store.objects()) == ["b"]
    assert "a was removed from the spool" in caplog.text


async def test_deletions_and_uploads_at_random(tmp_path: Path, far: FarStore) -> None:
    chance, there = random.Random(5), dict[str, bytes]()
    store = await opened(tmp_path / "spool", far)
    async with moving(store):
        for number in range(400):
            far.away = chance.random() < 0.3
            await asyncio.sleep(chance.choice((0, 0, 0.002)))
            if there and chance.random() < 0.4:
                key = chance.choice(list(there))
                try:
                    await store.delete(key)
                    del there[key]
                except ArchiveUnavailable:
                    assert far.away or store.waiting.error
            else:
                key = f"{number:03d}"
                there[key] = chance.randbytes(chance.randrange(3000))
                try:
                    await put(store, key, there[key])
                except ArchiveUnavailable:  # its first listing
                    del there[key]
        far.away = False
        await moved(store)
    assert far.contents == there
    assert await store.objects() == {key: len(content) for key, content in sorted(there.items())}


async def test_a_key_is_given_once_wherever_its_object_is(tmp_path: Path, far: FarStore) -> None:
    far.contents["far"] = b"1"
    store = await opened(tmp_path / "spool", far)
    await put(store, "near", b"1")
    for key in ("far", "near"):
        with pytest.raises(ArchiveError, match="exists already"):
            await put(store, key, b"2")


async def test_what_is_moved_while_the_store_is_listed_is_known(tmp_path: Path) -> None:
    class Slow(FarStore):
        """Answers a first question for its list late, with what there was when it was asked."""

        def __init__(self) -> None:
            super().__init__()
            self.asked_first, self.answer_first = asyncio.Event(), asyncio.Event()

        async def objects(self) -> dict[str, int]:
            found = await super().objects()
            if not self.asked_first.is_set():
                self.asked_first.set()
                await self.answer_first.wait()
            return found

    far = Slow()
    store = await opened(tmp_path / "spool", far)
    listing = asyncio.create_task(store.objects())
    await far.asked_first.wait()
    upload = await store.create("near")
    await upload.write([b"1"])
    committing = asyncio.create_task(upload.commit())
    async with moving(store):
        done, _ = await asyncio.wait([committing], timeout=0.5)
        if done:  # it asked for a list of its own
            await moved(store)
        far.answer_first.set()
        await asyncio.gather(listing, committing)
        await moved(store)
    assert await store.objects() == {"near": 1}


async def test_moving_over_s3_that_fails_now_and_then(tmp_path: Path, seaweed: SeaweedServer) -> None:
    """With the server killed in the middle, and a network that loses every fifth request."""
    content = {f"{number:02d}": random.Random(number).randbytes(number * 1_500_000) for number in range(12)}
    async with FaultyProxy(seaweed.port) as proxy:
        chance = random.Random(1)
        proxy.fault = lambda _method, _path: chance.choice(("", "", "", "", "503", "cut", "lost", "torn"))
        location = seaweed.location("spool", tmp_path.name, proxy.endpoint)
        store = await opened(tmp_path / "spool", S3Store(location, retry_seconds=1))
        async with moving(store):
            while store._known is None:
                try:
                    await store.objects()
                except ArchiveUnavailable:
                    await asyncio.sleep(0.1)
            for number, (key, data) in enumerate(content.items()):
                await put(store, key, data)
                if number == 6:
                    await asyncio.to_thread(seaweed.kill)
            await asyncio.to_thread(seaweed.start)
            await moved(store)
        proxy.fault = lambda _method, _path: ""
        behind = S3Store(location)
        await behind.clear_torn()
        assert await behind.objects() == {key: len(data) for key, data in content.items()}
        for key, data in content.items():
            assert await behind.read(key, 0, len(data) + 1) == data


def run_and_kill(chance: random.Random, *words: str) -> dict[str, set[int]]:
    """Run ``spooling.py`` until it has said something, and a moment longer; return what it said of which images."""
    with subprocess.Popen([sys.executable, "-m", "tests.unit.archive.spooling", *words], cwd=ROOT,
                          stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        lines = [process.stdout.readline() for _ in range(chance.randrange(1, 12))]
        time.sleep(chance.uniform(0, 0.06))
        process.kill()
        said = [line.split() for line in (*lines, *process.stdout.read().splitlines())]
    return {what: {int(number) for verb, number in said if verb == what} for what in SAID}


async def test_whoever_is_killed_loses_nothing_that_was_acknowledged(tmp_path: Path, seaweed: SeaweedServer) -> None:
    chance, following = random.Random(3), 1
    said: dict[str, set[int]] = {what: set() for what in SAID}
    location = seaweed.location("killed", tmp_path.name)
    words = (seaweed.endpoint, tmp_path.name, str(location.credentials), str(tmp_path / "spool"))
    for _ in range(12):
        more = await asyncio.to_thread(run_and_kill, chance, *words, str(following))
        said = {what: said[what] | more[what] for what in SAID}
        following = max(said["stored"], default=0) + 2
    store = await opened(tmp_path / "spool", S3Store(location))
    async with moving(store), Archive(store) as archive:
        await moved(store)
        there = set(await archive.crids())
        assert said["stored"] - said["forgetting"] <= there
        assert not said["forgotten"] & there
        assert there <= set(range(1, following))
        for crid in there:
            assert await read_image(archive, crid) == stream(pages(crid))
    async with Archive(S3Store(location)) as archive:
        assert set(await archive.crids()) == there, "it does not need the spool"
        for crid in there:
            await archive.forget(crid)
        assert await S3Store(location).objects() == {}
    assert len(said["stored"]) >= 20
    assert len(said["forgotten"]) >= 5


async def test_a_move_that_is_given_up_too_late_is_taken_back(tmp_path: Path) -> None:
    class Late(FarStore):
        """Has an object although its commit was cancelled."""

        async def create(self, key: str) -> LateUpload:
            return LateUpload(self, key)

    class LateUpload(FarUpload):
        async def commit(self) -> None:
            await MemoryUpload.commit(self)
            await asyncio.Event().wait()

    far = Late()
    store = await opened(tmp_path / "spool", far)
    await put(store, "a", b"content")
    async with moving(store):
        while "a" not in far.contents:
            await asyncio.sleep(0.01)
        await store.delete("a")
        assert far.contents == {}
        assert await store.objects() == {}


async def test_what_somebody_removed_from_the_store_is_moved_again(tmp_path: Path, far: FarStore) -> None:
    far.contents["a"] = b"content"
    store = await opened(tmp_path / "spool", far)
    await store.objects()
    del far.contents["a"]
    (tmp_path / "spool" / "a").write_bytes(b"content")
    store._waiting["a"] = 7
    async with moving(store):
        await moved(store)
    assert far.contents == {"a": b"content"}


@pytest.mark.parametrize("size", [100, 3 * PART_BYTES + 100])
async def test_a_move_that_was_done_although_it_seemed_to_fail(tmp_path: Path, seaweed: SeaweedServer,
                                                               size: int) -> None:
    """The server has the object, its answers are lost, and it cannot be reached to take the object back."""
    content, since = random.Random(size).randbytes(size), 0

    def lose(method: str, path: str) -> str:
        nonlocal since
        since += bool(since) or (method == "PUT" and path.endswith("/a"))
        return ("lost" if method == "PUT" else "away") if 0 < since < 12 else ""

    async with FaultyProxy(seaweed.port) as proxy:
        store = await opened(tmp_path / "spool", S3Store(seaweed.location("spool", tmp_path.name, proxy.endpoint),
                                                         retry_seconds=0.3))
        await store.objects()
        await put(store, "a", content)
        proxy.fault = lose
        async with moving(store):
            await moved(store)
        assert since >= 12
        assert await store.read("a", 0, size + 1) == content
    behind = S3Store(seaweed.location("spool", tmp_path.name))
    assert await behind.clear_torn() == 0
    assert await behind.read("a", 0, size + 1) == content
