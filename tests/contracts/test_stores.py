"""What every store must do; each store passes the same tests."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.archive.keys import Key, KeyRing
from crd.archive.stores.local import LocalStore
from crd.archive.stores.memory import MemoryStore
from crd.archive.stores.s3 import S3Store
from crd.archive.stores.s3_object import PART_BYTES
from crd.archive.stores.sealed import SealedStore
from crd.archive.stores.spooled import SpooledStore
from crd.errors import ArchiveError, ArchiveUnavailable, BlobCorrupt, BlobMissing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from crd.archive.stores.store import Store


KINDS = ("local", "memory", "s3", "spooled memory", "spooled s3", "sealed local", "sealed memory", "sealed s3",
         "sealed spooled s3")


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    *over, below = request.param.split()
    store: Store
    match below:
        case "local":
            store = LocalStore(tmp_path / "store")
        case "memory":
            store = MemoryStore()
        case _:
            store = S3Store(request.getfixturevalue("seaweed").location("contract", tmp_path.name))
    moving = None
    if "spooled" in over:
        store = spooled = SpooledStore(LocalStore(tmp_path / "spool"), store, 1 << 30)
        await spooled.open()
        moving = asyncio.create_task(spooled.run())
    yield SealedStore(store, KeyRing([Key(bytes(range(32)))])) if "sealed" in over else store
    if moving:
        assert not moving.done(), moving
        moving.cancel()
        await asyncio.gather(moving, return_exceptions=True)


async def test_room_is_told_where_it_has_an_end(store: Store, request: pytest.FixtureRequest) -> None:
    ends = {"local", "spooled"} & {*request.node.callspec.params["store"].split()}
    free_bytes = await store.free_bytes()
    assert (free_bytes is not None) == bool(ends)
    if "spooled" in ends:
        upload = await store.create("a")
        await upload.write([bytes(1 << 20)])
        assert (await store.free_bytes() or 0) <= (1 << 30) - (1 << 19), "a sealed store may hold back a chunk"
        await upload.abort()


async def put(store: Store, key: str, *parts: bytes) -> None:
    upload = await store.create(key)
    for part in parts:
        await upload.write([part])
    await upload.commit()


async def test_what_is_committed_is_read_back(store: Store) -> None:
    await put(store, "a", b"0123", b"", b"456789")
    assert await store.size("a") == 10
    assert await store.read("a", 0, 10) == b"0123456789"
    assert await store.read("a", 3, 4) == b"3456"
    assert await store.read("a", 8, 100) == b"89"


async def test_what_is_large_is_read_back_from_any_place(store: Store) -> None:
    content = random.Random(1).randbytes(2 * PART_BYTES + 12_345)
    await put(store, "a", content[:100], content[100:PART_BYTES + 1], content[PART_BYTES + 1:])
    assert await store.objects() == {"a": len(content)}
    assert await store.size("a") == len(content)
    for offset, length in ((0, len(content)), (PART_BYTES - 3, 6), (PART_BYTES, 1), (2 * PART_BYTES - 1, 2),
                           (len(content) - 5, 100), (17, PART_BYTES), (len(content), 5)):
        assert await store.read("a", offset, length) == content[offset:offset + length]
    await store.delete("a")
    assert await store.objects() == {}
    assert await store.clear_torn() == 0


async def test_an_object_that_ends_with_a_part(store: Store) -> None:
    for key, size in (("a", PART_BYTES), ("b", PART_BYTES + 1), ("c", 0)):
        await put(store, key, bytes(size))
        assert await store.size(key) == size
        assert await store.read(key, max(0, size - 2), 10) == bytes(min(size, 2))


async def test_nothing_is_visible_before_the_commit(store: Store) -> None:
    upload = await store.create("a")
    await upload.write([b"secret"])
    assert await store.objects() == {}
    with pytest.raises(BlobMissing):
        await store.read("a", 0, 1)
    await upload.abort()


async def test_an_abort_leaves_nothing(store: Store) -> None:
    upload = await store.create("a")
    await upload.write([b"x" * (2 * PART_BYTES + 100_000)])
    await upload.abort()
    await upload.abort()
    assert await store.objects() == {}
    assert await store.clear_torn() == 0


async def test_a_key_is_given_once(store: Store) -> None:
    await put(store, "a", b"first")
    with pytest.raises(ArchiveError):
        await put(store, "a", b"second")
    assert await store.read("a", 0, 10) == b"first"


async def test_what_is_there_is_current(store: Store) -> None:
    await put(store, "a", b"1")
    assert await store.is_current("a")
    assert not await store.is_current("b")


async def test_keys_are_listed_in_order_and_deleted(store: Store) -> None:
    for key in ("c", "a", "b"):
        await put(store, key, b"1")
    await store.delete("b")
    await store.delete("nothing")
    assert list(await store.objects()) == ["a", "c"]
    with pytest.raises(BlobMissing):
        await store.size("b")


async def test_a_local_store_is_private_and_clears_what_is_torn(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    await put(store, "a", b"secret")
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "store" / "a").stat().st_mode & 0o777 == 0o600
    upload = await store.create("a")
    await upload.write([b"x" * 10])
    assert await store.clear_torn() == 1
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["a"]
    await upload.abort()


async def test_a_local_store_that_others_may_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(ArchiveUnavailable) as refused:
        LocalStore(tmp_path / "open")
    assert "chmod" in refused.value.hint


async def test_a_local_store_follows_no_links(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "store" / "a").symlink_to(tmp_path / "secret")
    with pytest.raises(BlobCorrupt):
        await store.read("a", 0, 6)
