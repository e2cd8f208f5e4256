"""The store on S3, against a real server, on bad days of the network and of the server."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import obstore
import pytest

from crd.archive.stores.s3 import S3Store
from crd.archive.stores.s3_client import Location, meaning, read_credentials
from crd.archive.stores.s3_object import PART_BYTES
from crd.errors import (
    ArchiveDenied,
    ArchiveError,
    ArchiveFull,
    ArchiveUnavailable,
    BlobCorrupt,
    BlobMissing,
    SettingsError,
)
from tests.support.faulty import FaultyProxy
from tests.support.seaweed import ACCESS_KEY, SECRET_KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.seaweed import SeaweedServer

BUCKET = "stores"
CONTENT = random.Random(1).randbytes(3 * PART_BYTES + 4711)


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return tmp_path.name


@pytest.fixture
async def proxy(seaweed: SeaweedServer) -> AsyncIterator[FaultyProxy]:
    async with FaultyProxy(seaweed.port) as running:
        yield running


@pytest.fixture
def store(seaweed: SeaweedServer, proxy: FaultyProxy, prefix: str) -> S3Store:
    """A store behind the proxy."""
    return S3Store(seaweed.location(BUCKET, prefix, proxy.endpoint))


@pytest.fixture
def hasty(seaweed: SeaweedServer, proxy: FaultyProxy, prefix: str) -> S3Store:
    """The same, but it gives up after a second."""
    return S3Store(seaweed.location(BUCKET, prefix, proxy.endpoint), retry_seconds=1)


async def put(store: S3Store, key: str, content: bytes) -> None:
    upload = await store.create(key)
    try:
        await upload.write([content])
        await upload.commit()
    finally:
        await upload.abort()


def names(seaweed: SeaweedServer, prefix: str) -> list[str]:
    return [meta["path"].removeprefix(f"{prefix}/") for chunk in obstore.list(seaweed.bucket(BUCKET), prefix)
            for meta in chunk]


def now_and_then(fault: str, *methods: str, every: int = 3) -> Callable[[str, str], str]:
    """Return a fault that every so manieth of some requests meets, the first one too."""
    seen = 0

    def choose(method: str, _path: str) -> str:
        nonlocal seen
        if method not in methods:
            return ""
        seen += 1
        return fault if seen % every == 1 else ""

    return choose


@pytest.mark.parametrize("fault", ["503", "cut", "lost", "torn"])
async def test_a_request_that_fails_is_sent_again(store: S3Store, proxy: FaultyProxy, fault: str) -> None:
    proxy.fault = now_and_then(fault, "PUT", "GET", "DELETE", every=3)
    await put(store, "a", CONTENT)
    await put(store, "b", b"small")
    assert await store.objects() == {"a": len(CONTENT), "b": 5}
    assert await store.read("a", 0, len(CONTENT)) == CONTENT
    assert await store.read("b", 0, 9) == b"small"
    await store.delete("a")
    assert list(await store.objects()) == ["b"]
    assert sum(met == fault for _, _, met in proxy.requests) >= 3


async def test_another_object_under_the_key_is_told_from_our_own_whose_answer_was_lost(
        store: S3Store, proxy: FaultyProxy) -> None:
    proxy.fault = now_and_then("lost", "PUT", every=2)
    await put(store, "a", b"first")
    assert [met for method, _, met in proxy.requests if method == "PUT"] == ["lost", ""]
    proxy.fault = lambda _method, _path: ""
    with pytest.raises(ArchiveError, match="exists already"):
        await put(store, "a", b"first")
    assert await store.read("a", 0, 9) == b"first"


@pytest.mark.parametrize("fault", ["503", "away", "lost"])
async def test_a_store_that_stays_away_is_unavailable_in_the_end(
        store: S3Store, hasty: S3Store, proxy: FaultyProxy, fault: str, seaweed: SeaweedServer, prefix: str) -> None:
    await put(store, "there", b"1")
    proxy.fault = lambda method, path: fault if method == "PUT" or fault != "lost" else ""
    with pytest.raises(ArchiveUnavailable) as away:
        await put(hasty, "a", b"1")
    assert away.value.retryable
    assert away.value.hint
    assert len(proxy.requests) > 3
    if fault != "lost":
        for ask in (hasty.objects, hasty.clear_torn, partial(hasty.size, "a"), partial(hasty.delete, "a")):
            with pytest.raises(ArchiveUnavailable):
                await ask()
    proxy.fault = lambda _method, _path: ""
    assert list(await store.objects()) == ["there"], "what was said not to be there is not"
    assert names(seaweed, prefix) == ["there"]
    await put(store, "a", b"2")
    assert await store.read("a", 0, 5) == b"2"


async def test_what_is_damaged_on_its_way_is_refused_by_the_server(store: S3Store, hasty: S3Store,
                                                                   proxy: FaultyProxy) -> None:
    proxy.fault = lambda method, _path: "flip" if method == "PUT" else ""
    with pytest.raises(ArchiveUnavailable):
        await put(hasty, "a", b"content")
    proxy.fault = lambda _method, _path: ""
    assert await store.objects() == {}


async def test_an_upload_that_is_begun_again_sends_only_what_is_missing(store: S3Store, proxy: FaultyProxy,
                                                                       seaweed: SeaweedServer, prefix: str) -> None:
    upload = await store.create("a")
    await upload.write([CONTENT[:2 * PART_BYTES + 1]])
    await asyncio.gather(*upload._puts)
    assert len(names(seaweed, prefix)) == 2
    assert await store.objects() == {}
    again = S3Store(seaweed.location(BUCKET, prefix, proxy.endpoint))  # a daemon that was killed and started again
    proxy.requests.clear()
    await put(again, "a", CONTENT)
    assert sum(method == "PUT" for method, _, _ in proxy.requests) == 2
    assert await again.read("a", 0, len(CONTENT)) == CONTENT


async def test_what_a_killed_daemon_left_is_removed(store: S3Store, seaweed: SeaweedServer, prefix: str) -> None:
    await put(store, "whole", CONTENT)
    upload = await store.create("torn")
    await upload.write([CONTENT])
    await asyncio.gather(*upload._puts)
    assert await store.objects() == {"whole": len(CONTENT)}
    assert await store.clear_torn() == 3
    assert len(names(seaweed, prefix)) == 4
    assert await store.read("whole", 0, len(CONTENT)) == CONTENT


async def test_an_upload_that_is_cancelled_leaves_nothing(store: S3Store, proxy: FaultyProxy, seaweed: SeaweedServer,
                                                          prefix: str) -> None:
    for number in range(8):
        upload = await store.create("a")
        await upload.write([CONTENT])
        committing = asyncio.create_task(upload.commit())
        await asyncio.sleep(0.01 * number)
        committing.cancel()
        committed = True
        try:
            await committing
        except asyncio.CancelledError:
            committed = False
        await upload.abort()
        assert ("a" in await store.objects()) is committed
        await store.delete("a")
        await store.clear_torn()  # what the server had taken when the connection was given up
        assert names(seaweed, prefix) == []


async def test_two_uploads_of_a_key_at_once_are_refused(store: S3Store) -> None:
    upload = await store.create("a")
    with pytest.raises(ArchiveError, match="being written"):
        await store.create("a")
    await upload.abort()
    await (await store.create("a")).abort()


async def test_of_many_that_create_a_key_one_succeeds(seaweed: SeaweedServer, prefix: str) -> None:
    """Each a process of its own, as it were: they know of the others by the server alone."""
    stores = [S3Store(seaweed.location(BUCKET, prefix)) for _ in range(8)]
    ended = await asyncio.gather(*(put(each, "a", bytes([number])) for number, each in enumerate(stores)),
                                 return_exceptions=True)
    assert [type(error) for error in ended if error] == [ArchiveError] * 7
    assert await stores[0].read("a", 0, 2) == bytes([ended.index(None)])


async def test_what_is_damaged_in_the_bucket_is_told(store: S3Store, seaweed: SeaweedServer, prefix: str) -> None:
    await put(store, "a", CONTENT)
    bucket = seaweed.bucket(BUCKET)
    [whole, *parts] = names(seaweed, prefix)
    end = bytes(obstore.get(bucket, f"{prefix}/{whole}").bytes())
    fresh = S3Store(seaweed.location(BUCKET, prefix))
    for damaged in (end[:-1], end[:40], b"", end[:-40] + b"\1" + end[-39:], end[:-70] + b"\1" + end[-69:],
                    end[:-32] + b"\xff" * 8 + end[-24:]):
        obstore.put(bucket, f"{prefix}/a", damaged)
        with pytest.raises(BlobCorrupt):
            await fresh.size("a")
        assert list(await fresh.objects()) == ["a"]
    obstore.put(bucket, f"{prefix}/a", end)
    obstore.put(bucket, f"{prefix}/{parts[1]}", b"short")
    with pytest.raises((BlobCorrupt, ArchiveUnavailable)):
        await fresh.read("a", 0, len(CONTENT))
    obstore.delete(bucket, f"{prefix}/{parts[1]}")
    with pytest.raises(BlobMissing):
        await fresh.read("a", 0, len(CONTENT))
    assert await fresh.read("a", 0, PART_BYTES) == CONTENT[:PART_BYTES]


async def test_a_key_that_begins_as_another(store: S3Store) -> None:
    for key in ("a", "ab", "a.b"):
        await put(store, key, key.encode())
    await store.delete("a")
    assert list(await store.objects()) == ["a.b", "ab"]


async def test_uploads_go_on_when_the_server_was_killed_under_them(seaweed: SeaweedServer, prefix: str) -> None:
    store = S3Store(seaweed.location(BUCKET, prefix))
    await put(store, "before", CONTENT)
    stored, stop = ["before"], asyncio.Event()

    async def store_on() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with suppress(ArchiveUnavailable):
                await put(store, f"n{number:04d}", CONTENT[:number * 100_000 % (2 * PART_BYTES)])
                stored.append(f"n{number:04d}")

    storing = [asyncio.create_task(store_on())]
    try:
        while len(stored) < 4:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(seaweed.kill)
        await asyncio.to_thread(seaweed.start)
        reached = len(stored)
        while len(stored) < reached + 3:
            await asyncio.sleep(0.01)
    finally:
        stop.set()
        await asyncio.gather(*storing)
    await store.clear_torn()
    there = await store.objects()
    assert set(stored) <= set(there), "nothing that was acknowledged is lost"
    assert await store.read("before", 0, len(CONTENT)) == CONTENT
    for key in stored[1:]:
        assert await store.read(key, 0, len(CONTENT)) == CONTENT[:int(key[1:]) * 100_000 % (2 * PART_BYTES)]


@pytest.mark.parametrize(("change", "hint"), [
    ({"bucket": "no-such-bucket"}, "s3.bucket"), ({"secret": "wrong"}, "s3.credentials"),
    ({"key": "wrong"}, "s3.credentials")])
async def test_who_is_refused_hears_why(seaweed: SeaweedServer, tmp_path: Path, change: dict[str, str], hint: str,
                                        caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    good = seaweed.location(BUCKET)
    credentials = tmp_path / "credentials"
    credentials.touch(mode=0o600)
    credentials.write_text(f"[default]\naws_access_key_id = {change.get('key', ACCESS_KEY)}\n"
                           f"aws_secret_access_key = {change.get('secret', SECRET_KEY)}\n")
    store = S3Store(Location(change.get("bucket", BUCKET), "", good.endpoint, good.region, credentials))
    for ask in (store.objects, store.clear_torn, partial(store.size, "a"), partial(store.delete, "a"),
                *(() if "bucket" in change else (partial(put, store, "a", b"1"),))):  # that server makes the bucket
        with pytest.raises(ArchiveDenied) as denied:
            await ask()
        assert hint in denied.value.hint
        assert SECRET_KEY not in str(denied.value.to_json()) + caplog.text
        assert denied.value.exit_status == 12


async def test_nobody_at_the_endpoint(seaweed: SeaweedServer, prefix: str) -> None:
    store = S3Store(seaweed.location(BUCKET, prefix, "http://127.0.0.1:1"), retry_seconds=0.5)
    with pytest.raises(ArchiveUnavailable, match="refused") as away:
        await store.objects()
    assert "s3.endpoint" in away.value.hint


@pytest.mark.parametrize(("text", "kind"), [
    ("status code: 404 Not Found: <Error><Code>NoSuchKey</Code>", BlobMissing),
    ("status code: 404 Not Found: <html>a captive portal</html>", ArchiveUnavailable),
    ("status code: 404 Not Found: <Error><Code>NoSuchBucket</Code>", ArchiveDenied),
    ("status code: 301 Moved: <Error><Code>PermanentRedirect</Code>", ArchiveDenied),
    ("status code: 403 Forbidden: <Error><Code>RequestTimeTooSkewed</Code>", ArchiveDenied),
    ("kind: Connect, InvalidCertificate(\n UnknownIssuer,", ArchiveDenied),
    ("status code: 507 Insufficient Storage", ArchiveFull),
    ("status code: 403 Forbidden: <Error><Code>QuotaExceeded</Code>", ArchiveFull),
    ("something new", ArchiveUnavailable)])
def test_what_errors_mean(text: str, kind: type[ArchiveError]) -> None:
    assert type(meaning(text, "s3://bucket", "key")) is kind


@pytest.mark.parametrize("content", ["", "key = 1", "[default]\naws_access_key_id = x\n", "\0\xff", "[a]\n[b]\n",
                                     "[default]\naws_secret_access_key = secret-text"])
def test_credentials_that_say_nothing(tmp_path: Path, content: str) -> None:
    path = tmp_path / "credentials"
    path.touch(mode=0o600)
    path.write_text(content)
    with pytest.raises(SettingsError) as wrong:
        read_credentials(path)
    assert "secret-text" not in str(wrong.value.to_json())
    assert wrong.value.hint


def test_credentials_that_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    path.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    path.chmod(0o640)
    with pytest.raises(SettingsError, match="0640"):
        read_credentials(path)
    path.chmod(0o600)
    assert read_credentials(path) == ("a", "b", None)
