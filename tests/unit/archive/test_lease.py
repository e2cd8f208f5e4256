"""Who may write into a part of a shared store."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

import obstore
import pytest

from crd.archive.stores import lease as module
from crd.archive.stores.lease import Lease, holder_of
from crd.archive.stores.s3 import S3Store
from crd.archive.stores.s3_client import Client
from crd.errors import ArchiveError, ArchiveInUse, ArchiveUnavailable
from tests.support.faulty import FaultyProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from crd.archive.stores.s3_client import Location
    from tests.support.seaweed import SeaweedServer

BUCKET, SECONDS, RENEWALS = "leases", 60.0, 200


@pytest.fixture
def location(seaweed: SeaweedServer, tmp_path: Path) -> Location:
    return seaweed.location(BUCKET, tmp_path.name)


@pytest.fixture(autouse=True)
def renewed_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nobody has to wait for it, though a lease is for as long as a busy machine may take for a request."""
    monkeypatch.setattr(module, "_RENEWALS", RENEWALS)


def lease(location: Location, holder: str, seconds: float = SECONDS) -> Lease:
    made = Lease(location, "host", holder, seconds=seconds)
    made._client = Client(location, "host", retry_seconds=SECONDS / 2, request_seconds=SECONDS / 2)
    return made


@asynccontextmanager
async def renewing(held: Lease) -> AsyncIterator[None]:
    task = asyncio.create_task(held.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_second_daemon_is_refused_while_the_first_lives(location: Location) -> None:
    first, second = lease(location, "first"), lease(location, "second")
    await first.acquire()
    async with renewing(first):
        with pytest.raises(ArchiveInUse) as refused:
            await second.acquire()
        assert "s3.writer" in refused.value.hint
        assert refused.value.exit_status == 14
        with pytest.raises(ArchiveUnavailable):
            second.check()
        first.check()


async def test_a_released_lease_is_free_at_once(location: Location) -> None:
    first, second = lease(location, "first", 600), lease(location, "second")
    await first.acquire()
    await first.release()
    await asyncio.wait_for(second.acquire(), 300)
    second.check()
    with pytest.raises(ArchiveInUse):
        first.check()
    await first.release()  # takes nothing from the second
    await second.release()


async def test_what_the_same_holder_left_is_taken_over_at_once(location: Location) -> None:
    """A daemon that was killed, and is started again."""
    await lease(location, "one", 600).acquire()
    await asyncio.wait_for(lease(location, "one", 600).acquire(), 300)


async def test_a_lease_runs_out_and_its_holder_hears_of_it(location: Location) -> None:
    first, second = lease(location, "first", 2.0), lease(location, "second")
    await first.acquire()
    await second.acquire()
    with pytest.raises((ArchiveInUse, ArchiveUnavailable)):
        first.check()
    with pytest.raises(ArchiveInUse, match="took over"):
        await first.run()
    with pytest.raises(ArchiveInUse):
        first.check()


async def test_of_many_that_want_a_lease_one_gets_it(location: Location) -> None:
    for _ in range(3):
        async with AsyncExitStack() as stack:
            async def want(wanted: Lease, stack: AsyncExitStack = stack) -> None:
                await wanted.acquire()
                await stack.enter_async_context(renewing(wanted))

            wanting = [lease(location, str(number)) for number in range(6)]
            ended = await asyncio.gather(*map(want, wanting), return_exceptions=True)
            assert [type(error) for error in ended if error] == [ArchiveInUse] * 5, ended
        await wanting[ended.index(None)].release()


async def test_nothing_is_written_without_the_lease(location: Location, seaweed: SeaweedServer) -> None:
    first, second = lease(location, "first"), lease(location, "first")  # which need not wait for the other to run out
    await first.acquire()
    store = S3Store(location, "host/objects", lease=first)
    await (await store.create("a")).commit()
    await second.acquire()
    with suppress(ArchiveInUse):
        await first.run()
    with pytest.raises(ArchiveInUse):
        await (await store.create("b")).commit()
    with pytest.raises(ArchiveInUse):
        await store.delete("a")
    assert await S3Store(location, "host/objects").objects() == {"a": 0}


async def test_a_renewal_whose_answer_is_lost_is_one(seaweed: SeaweedServer, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultyProxy(seaweed.port) as proxy:
        held = lease(seaweed.location(BUCKET, tmp_path.name, proxy.endpoint), "first")
        lost = 0

        def lose_each_first_put(method: str, _path: str) -> str:
            nonlocal lost
            lost += method == "PUT"
            return "lost" if method == "PUT" and lost % 2 else ""

        proxy.fault = lose_each_first_put
        await held.acquire()
        async with asyncio.timeout(300), renewing(held):
            while lost < 6:
                await asyncio.sleep(0.01)
            held.check()
            proxy.fault = lambda _method, _path: "away"
            monkeypatch.setattr(module, "_now", lambda: time.clock_gettime(time.CLOCK_BOOTTIME) + SECONDS)
            while proxy.requests[-1][2] != "away":
                await asyncio.sleep(0.01)
            with pytest.raises(ArchiveUnavailable, match="renewed"):
                held.check()
            proxy.fault = lambda _method, _path: ""
            while not is_held(held):
                await asyncio.sleep(0.01)


def is_held(held: Lease) -> bool:
    try:
        held.check()
    except ArchiveUnavailable:
        return False
    return True


async def test_a_store_that_is_full_is_asked_again_and_costs_no_lease(seaweed: SeaweedServer, tmp_path: Path) -> None:
    async with FaultyProxy(seaweed.port) as proxy:
        held = lease(seaweed.location(BUCKET, tmp_path.name, proxy.endpoint), "first")
        await held.acquire()
        refused = asyncio.Event()

        def is_full(method: str, _path: str) -> str:
            if method == "PUT":
                refused.set()
            return "full" if method == "PUT" else ""

        proxy.fault = is_full
        renewing = asyncio.create_task(held.run())
        await refused.wait()
        proxy.fault = lambda _method, _path: ""
        done, _ = await asyncio.wait([renewing], timeout=2.0)
        assert not done, "whoever forgets images makes room again, and needs the lease for that"
        held.check()
        renewing.cancel()
        with suppress(asyncio.CancelledError):
            await renewing


async def test_an_object_that_is_no_lease(location: Location, seaweed: SeaweedServer) -> None:
    for content in (b"", b"[]", b"{}", b'{"holder": "x", "beat": "y", "seconds": "z", "host": "", "pid": 1}'):
        obstore.put(seaweed.bucket(BUCKET), f"{location.prefix}/host/lease", content)
        with pytest.raises(ArchiveError, match="no lease"):
            await lease(location, "first").acquire()


def test_a_holder_is_a_directory_in_a_boot(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert holder_of(tmp_path) == holder_of(tmp_path)
    assert holder_of(tmp_path) != holder_of(tmp_path / "other")
