"""What images need, in a file: made anew whenever it may not be the truth, and never the reason to lose a pack."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from crd.archive.archive import Archive
from crd.archive.names import image_key, numbered, pack_key
from crd.archive.needs import Needs
from crd.archive.references import Sharing
from crd.archive.stores.memory import MemoryStore, MemoryUpload
from crd.errors import ArchiveError, ArchiveUnavailable, BlobCorrupt
from crd.ids import Crid
from tests.unit.archive.streams import read_image, store_image, stream

if TYPE_CHECKING:
    from pathlib import Path


class CountingStore(MemoryStore):
    """Notes which images are read."""

    def __init__(self) -> None:
        super().__init__()
        self.read_images: list[str] = []

    async def read(self, key: str, offset: int, length: int) -> bytes:
        if key.endswith(".image"):
            self.read_images.append(key)
        return await super().read(key, offset, length)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "needs.db"


@pytest.fixture
async def store(path: Path) -> CountingStore:
    """Images 1 to 4, each of which has 10 pages of its own and shares 90 with the one before."""
    made = CountingStore()
    async with Archive(made, needs=path) as archive:
        for crid in range(1, 5):
            await store_image(archive, crid, stream(range(10 * crid, 10 * crid + 100)), base=crid - 1)
    made.read_images.clear()
    return made


def packs(store: MemoryStore) -> set[int]:
    return set(numbered(dict.fromkeys(store.contents, 0), "pack"))


def tokens(store: MemoryStore) -> set[int]:
    return set(numbered(dict.fromkeys(store.contents, 0), "token"))


async def check_whole(store: MemoryStore, path: Path, crids: set[int]) -> None:
    """These images are there, and once they are forgotten nothing is left of them."""
    async with Archive(store, needs=path) as archive:
        assert {*await archive.crids()} == crids
        for crid in crids:
            assert await read_image(archive, crid) == stream(range(10 * crid, 10 * crid + 100))
        for crid in crids:
            await archive.forget(Crid(crid))
        assert not packs(store)
        assert len(tokens(store)) == 1


async def test_what_is_known_is_not_read_again(store: CountingStore, path: Path) -> None:
    async with Archive(store, needs=path) as archive:
        assert store.read_images == []
        assert await archive.sharing(Crid(4)) == Sharing(10, 1, 90, 3)
        await archive.forget(Crid(3))
    await check_whole(store, path, {1, 2, 4})
    assert path.stat().st_mode & 0o777 == 0o600


async def test_images_that_came_and_went_behind_our_back(store: CountingStore, path: Path) -> None:
    apart = CountingStore()
    apart.contents = dict(store.contents)
    async with Archive(apart) as archive:  # knows nothing of the file, and leaves the token
        await archive.forget(Crid(1))
        await store_image(archive, 5, stream(range(50, 150)), base=4)
        apart.read_images.clear()
    async with Archive(apart, needs=path):
        assert {*apart.read_images} == {image_key(5)}, "the others are known"
    await check_whole(apart, path, {2, 3, 4, 5})


async def test_a_file_of_another_store_is_not_believed(store: CountingStore, path: Path, tmp_path: Path) -> None:
    other = MemoryStore()
    async with Archive(other, needs=tmp_path / "other.db") as archive:
        for crid in (3, 4):
            await store_image(archive, crid, stream(range(10 * crid, 10 * crid + 100)), base=crid - 1)
    await check_whole(other, path, {3, 4})
    await check_whole(store, path, {1, 2, 3, 4})


@pytest.mark.parametrize("damage", ["lost", "empty", "noise", "of another version", "torn"])
async def test_a_file_that_cannot_be_used_is_made_anew(store: CountingStore, path: Path, damage: str) -> None:
    content = path.read_bytes()
    if damage == "of another version":
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA user_version = 99")
    else:
        path.write_bytes({"lost": b"", "empty": b"", "noise": bytes(range(256)) * 40, "torn": content[:-4096]}[damage])
    if damage == "lost":
        path.unlink()
    await check_whole(store, path, {1, 2, 3, 4})


@pytest.mark.parametrize("statement", [
    "UPDATE packs SET marks = marks + 1", "UPDATE packs SET marks = marks - 1", "UPDATE packs SET pack = pack + 2",
    "UPDATE packs SET marks = NULL", "DELETE FROM packs WHERE rowid % 4", "UPDATE images SET crid = crid + 100",
    "UPDATE images SET needs = zeroblob(32)", "UPDATE images SET needs = 'x'", "DELETE FROM images WHERE crid > 2",
    "DELETE FROM images", "DELETE FROM packs", "UPDATE packs SET marks = 1",
])
async def test_a_damaged_file_has_no_pack_deleted_that_is_needed(store: CountingStore, path: Path,
                                                                 statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA ignore_check_constraints = ON")
        try:
            database.execute(statement)
        except sqlite3.IntegrityError:
            return
    async with Archive(store, needs=path) as archive:
        for crid in (2, 5):
            await archive.forget(Crid(crid))
        await store_image(archive, 5, stream(range(50, 150)), base=4)
        for crid in (1, 3, 4, 5):
            assert await read_image(archive, crid) == stream(range(10 * crid, 10 * crid + 100))


async def test_what_a_kill_leaves_of_a_commit_is_removed(store: CountingStore, path: Path) -> None:
    async with Archive(store, needs=path) as archive:
        sink = await archive.sink(Crid(4))
        own = sink._known.packs[0]
        await archive._references.enter(5, [(own, 10), *await archive._references.sound(4)])
    orphan = MemoryUpload(store, pack_key(own))
    await orphan.write([b"a pack whose image never came"])
    await orphan.commit()
    async with Archive(store, needs=path):
        assert own not in packs(store)
        assert store.read_images == [], "it was known"
    await check_whole(store, path, {1, 2, 3, 4})


async def test_what_a_kill_leaves_of_forgetting_is_removed(store: CountingStore, path: Path) -> None:
    del store.contents[image_key(1)]
    async with Archive(store, needs=path):
        assert len(packs(store)) == 4, "the others need its pack"
    for crid in (2, 3, 4):
        del store.contents[image_key(crid)]
    async with Archive(store, needs=path):
        assert not packs(store)


async def test_a_file_that_is_found_damaged_is_made_anew_at_the_next_start(store: CountingStore, path: Path) -> None:
    async with Archive(store, needs=path) as archive:
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("UPDATE packs SET marks = 1")
        await archive.forget(Crid(4))
        assert len(packs(store)) == 4
        await archive.forget(Crid(3))
    await check_whole(store, path, {1, 2})


def test_an_image_is_entered_once(path: Path) -> None:
    needs = Needs(path)
    needs.enter([(1, [(7, 1)])])
    with pytest.raises(ArchiveError):
        needs.enter([(2, [(7, 1)]), (1, [(9, 1)])])
    assert (needs.of(1), needs.of(2), needs.unknown([7, 9])) == ([(7, 1)], [], [9])
    needs.leave(1)
    assert needs.dead() == [7]
    needs.close()


def test_a_file_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArchiveUnavailable):
        Needs(tmp_path / "none" / "needs.db")
    (tmp_path / "directory").mkdir()
    with pytest.raises(ArchiveUnavailable):
        Needs(tmp_path / "directory")


def test_a_sum_that_is_too_small_is_damage() -> None:
    needs = Needs(None)
    needs.enter([(1, [(7, 1), (9, 1)])])
    needs._database.execute("UPDATE packs SET marks = 0 WHERE pack = 9")
    with pytest.raises(BlobCorrupt):
        needs.leave(1)
    assert needs.of(1) == [(7, 1), (9, 1)], "nothing has changed"
