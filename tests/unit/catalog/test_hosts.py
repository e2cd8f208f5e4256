"""Hosts that share a catalog on a real PostgreSQL server: apart from each other, and of one mind."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from crd.catalog import presence
from crd.catalog.catalog import Catalog
from crd.clock import SystemClock
from crd.errors import CatalogError, CatalogInUse, CatalogUnavailable, ImageInUse, ImageNotFound, TargetExists
from crd.ids import Crid, TargetName, parse_image_ref
from tests.support.postgres import PostgresServer
from tests.unit.catalog.test_catalog import enter, image

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
CLOCK = SystemClock()


@pytest.fixture
async def hosts(database_url: str) -> AsyncIterator[tuple[Catalog, Catalog]]:
    async with await Catalog.open(database_url, "one") as one, await Catalog.open(database_url, "two") as two:
        yield one, two


async def ask(catalog: Catalog, crid: int = 1, host: str = "") -> int:
    request = await catalog.requests.add(Crid(crid), pids="new", files="keep", uid=0, now=NOW, host=host)
    return request.number


async def within(condition: Callable[[], object], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_both_make_the_tables_at_the_same_time(database_url: str) -> None:
    async with AsyncExitStack() as stack:
        opened = await asyncio.gather(*(Catalog.open(database_url, f"host{n}") for n in range(4)))
        for catalog in opened:
            await stack.enter_async_context(catalog)
            assert await catalog.images.list() == []


async def test_each_has_crids_targets_and_attempts_of_its_own(hosts: tuple[Catalog, Catalog]) -> None:
    one, two = hosts
    for catalog, host, comm in ((one, "one", "first"), (two, "two", "second")):
        await enter(catalog, 1, host=host, comm=comm)
        await catalog.targets.add(TargetName("web"), {"pid": 1, "every": host})
        await catalog.checkpoints.start("web", 42, NOW)
    assert [(await catalog.images.get(Crid(1))).comm for catalog in hosts] == ["first", "second"]
    assert (await one.images.find(parse_image_ref("two/1", now=NOW))).comm == "second"
    assert (await one.images.find(parse_image_ref("web@latest", now=NOW))).comm == "first"
    assert len(await one.images.list()) == 2, "everybody sees all images"
    assert (await two.targets.all())["web"] == {"pid": 1, "every": "two"}
    with pytest.raises(TargetExists):
        await two.targets.add(TargetName("web"), {})
    assert await one.checkpoints.recover(NOW) == 1
    assert (await two.checkpoints.last())["web"].state == "running", "what another host does is not ours to settle"
    settled = await one.images.settle([Crid(1)], {})
    assert (settled.unknown, settled.missing) == ([], [])
    await one.images.forget(Crid(1))
    with pytest.raises(ImageNotFound):
        await two.images.get(Crid(1), "one")
    assert (await two.images.get(Crid(1))).comm == "second"


async def test_a_request_is_for_the_host_of_the_image(hosts: tuple[Catalog, Catalog]) -> None:
    one, two = hosts
    await enter(two, 1, host="two")
    with pytest.raises(ImageNotFound):
        await ask(one)
    number = await ask(one, host="two")
    with pytest.raises(ImageInUse):
        await two.images.forget(Crid(1))
    assert await one.requests.claim(NOW) is None
    claimed = await two.requests.claim(NOW)
    assert claimed
    assert (claimed.number, claimed.host, claimed.state) == (number, "two", "running")
    assert await one.requests.recover(NOW, "boot", lambda _pid, _start: False) == []
    assert (await one.requests.get(number)).state == "running"
    assert (await one.requests.queue())[:2] == (0, 0)
    assert (await two.requests.queue())[:2] == (0, 1)


async def test_each_request_is_claimed_once(database_url: str) -> None:
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(await Catalog.open(database_url, "one")) for _ in range(4)]
        await enter(workers[0], 1, host="one")
        asked = [await ask(workers[0]) for _ in range(60)]
        claimed: list[int] = []

        async def claim_all(catalog: Catalog) -> None:
            misses = 0
            while misses < 5:
                if request := await catalog.requests.claim(NOW):
                    claimed.append(request.number)
                else:
                    misses += 1
                    await asyncio.sleep(0.01)

        await asyncio.gather(*map(claim_all, workers))
        assert sorted(claimed) == asked


async def test_a_host_is_one_daemons(hosts: tuple[Catalog, Catalog], database_url: str) -> None:
    one, two = hosts
    async with one.present(CLOCK, lambda: None), two.present(CLOCK, lambda: None):
        assert set(await one.hosts()) == {"one", "two"}
        async with await Catalog.open(database_url, "one") as other:
            with pytest.raises(CatalogInUse, match="host one"):
                async with other.present(CLOCK, lambda: None):
                    pass
    async with await Catalog.open(database_url, "one") as other, other.present(CLOCK, lambda: None):
        pass


async def test_daemons_hear_of_requests(hosts: tuple[Catalog, Catalog]) -> None:
    one, two = hosts
    heard: list[str] = []
    await enter(two, 1, host="two")
    async with one.present(CLOCK, lambda: heard.append("one")), two.present(CLOCK, lambda: heard.append("two")):
        heard.clear()
        number = await ask(one, host="two")
        await within(lambda: {*heard} == {"one", "two"})
        await two.requests.claim(NOW)
        heard.clear()
        await two.requests.failed(number, NOW, CatalogError("no"))
        await within(lambda: "one" in heard)


async def test_the_server_may_go_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "_BEAT_SECONDS", 0.1)
    monkeypatch.setattr(presence, "_RETRY_SECONDS", 0.1)
    heard: list[None] = []
    with PostgresServer() as server:
        url = server.database("catalog")
        async with await Catalog.open(url, "one") as one, one.present(CLOCK, lambda: heard.append(None)) as present:
            assert present
            await enter(one, 1, host="one")
            await asyncio.to_thread(server.stop)
            with pytest.raises(CatalogUnavailable) as away:
                await ask(one)
            assert away.value.retryable
            await asyncio.to_thread(server.start)
            assert await one.images.get(Crid(1)) == image(1, host="one", stored_bytes=100)
            heard.clear()
            await within(lambda: heard)
            assert not present.done()
            await asyncio.to_thread(server.stop)
            await asyncio.sleep(0.3)
            monkeypatch.setattr(presence, "_RETRY_SECONDS", 5)  # so that the other one is first
            await asyncio.sleep(0.3)
            await asyncio.to_thread(server.start)
            async with await Catalog.open(url, "one") as other:
                try:
                    async with other.present(CLOCK, lambda: None):
                        await asyncio.wait_for(asyncio.shield(present), 60)
                except CatalogInUse:
                    pass  # the first was quicker, and it is still its host
                else:
                    assert present.done(), "a daemon whose host is another's by now has to stop"


async def test_a_server_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(CatalogUnavailable):
        await Catalog.open(f"postgresql+asyncpg://crd@/crd?host={tmp_path}", "one")


async def test_a_foreign_database_is_left_alone(postgres: PostgresServer) -> None:
    from sqlalchemy import text

    from crd.catalog.session import open_database

    url = postgres.database("foreign")
    async with await Catalog.open(url, "one") as catalog:
        await catalog._database.write(lambda connection: connection.execute(text("DROP TABLE alembic_version")))
    with pytest.raises(CatalogError, match="is no catalog of crd"):
        await open_database(url)


async def test_a_catalog_of_one_host_follows_it_to_another_name(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/catalog.db"
    async with await Catalog.open(url, "old") as catalog:
        await enter(catalog, 1, host="old")
        await catalog.targets.add(TargetName("web"), {"pid": 1})
        await catalog.targets.hold("web", held=True)
        number = await ask(catalog)
    async with await Catalog.open(url, "new") as catalog:
        assert (await catalog.images.get(Crid(1))).host == "new"
        assert await catalog.targets.held() == {"web": True}
        assert "web" in await catalog.targets.all()
        claimed = await catalog.requests.claim(NOW)
        assert claimed
        assert claimed.number == number
