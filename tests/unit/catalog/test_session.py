"""Transactions among others: other programs, cancellations, failing disks, kill -9."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from datetime import UTC, datetime
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from crd.catalog import sqlite
from crd.catalog.catalog import Catalog
from crd.errors import CatalogBusy, CatalogError, CatalogOutOfDate
from crd.ids import Crid
from tests.unit.catalog.test_catalog import enter

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def url(home: Path) -> str:
    return f"sqlite:///{home}/catalog.db"


async def test_readers_do_not_wait_for_another_programs_writing(sqlite_catalog: Catalog, tmp_path: Path) -> None:
    await enter(sqlite_catalog, 1)
    with closing(sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with asyncio.timeout(60):
            assert (await sqlite_catalog.images.get(Crid(1))).crid == 1
        other.execute("ROLLBACK")


async def test_a_lock_that_another_program_keeps_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", 0.05)
    async with await Catalog.open(url(tmp_path), "here") as catalog:
        with closing(sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(CatalogBusy) as busy:
                await enter(catalog, 1)
            assert busy.value.retryable
            other.execute("ROLLBACK")
        await enter(catalog, 1)


async def test_a_full_catalog_says_what_to_do_and_goes_on_afterwards(sqlite_catalog: Catalog) -> None:
    def fill(connection: Connection) -> None:
        pages = connection.execute(text("PRAGMA page_count")).scalar()
        connection.execute(text(f"PRAGMA max_page_count={pages}"))

    await sqlite_catalog._database.write(fill)
    with pytest.raises(CatalogError) as full:
        await sqlite_catalog.checkpoints.skip("web", NOW, "x" * 5_000_000)
    assert "space" in full.value.hint
    await sqlite_catalog._database.write(
        lambda connection: connection.execute(text("PRAGMA max_page_count=1000000")))
    await sqlite_catalog.checkpoints.skip("web", NOW, "")


async def test_a_damaged_catalog_is_said_so(tmp_path: Path) -> None:
    async with await Catalog.open(url(tmp_path), "here") as catalog:
        for crid in range(1, 200):
            await enter(catalog, crid)
    path = tmp_path / "catalog.db"
    size = path.stat().st_size
    with path.open("r+b") as file:
        for at in range(8192, size, 4096):
            file.seek(at)
            file.write(os.urandom(2000))
    with pytest.raises(CatalogError) as damaged:
        async with await Catalog.open(url(tmp_path), "here") as catalog:
            await catalog.images.list()
    assert not isinstance(damaged.value, CatalogOutOfDate)
    assert "backup" in damaged.value.hint


async def test_a_damaged_row_is_said_so_and_hurts_no_other(tmp_path: Path) -> None:
    async with await Catalog.open(url(tmp_path), "here") as catalog:
        for crid in (1, 2):
            await enter(catalog, crid)
        for column, value in (("header", "{"), ("taken_at", "yesterday")):
            statement = text(f"UPDATE images SET {column} = '{value}' WHERE crid = 1")
            await catalog._database.write(methodcaller("execute", statement))
            with pytest.raises(CatalogError) as damaged:
                await catalog.images.list()
            assert "backup" in damaged.value.hint
            assert (await catalog.images.get(Crid(2))).crid == 2


async def test_cancellations_leave_the_catalog_usable(catalog: Catalog) -> None:
    chance = random.Random(5)
    await enter(catalog, 1)
    asked: list[asyncio.Task[object]] = []
    for _ in range(60):
        work = [asyncio.create_task(catalog.requests.add(Crid(1), pids="new", files="keep", uid=0, now=NOW)),
                asyncio.create_task(catalog.requests.list()), asyncio.create_task(catalog.requests.claim(NOW))]
        for _ in range(chance.randrange(40)):
            await asyncio.sleep(0)
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        asked += work
    assert any(task.cancelled() for task in asked)
    async with asyncio.timeout(20):
        before = len(await catalog.requests.list())
        await asyncio.gather(*(catalog.requests.add(Crid(1), pids="new", files="keep", uid=0, now=NOW)
                               for _ in range(20)))
        assert len(await catalog.requests.list()) == before + 20


async def test_an_address_as_earlier_versions_wrote_it(tmp_path: Path) -> None:
    async with await Catalog.open(f"sqlite+aiosqlite:///{tmp_path}/catalog.db", "here") as catalog:
        await enter(catalog, 1)
    async with await Catalog.open(url(tmp_path), "here") as catalog:
        assert await catalog.images.count() == 1


@pytest.mark.parametrize("address", ["", "sqlite://", "sqlite+other:///x.db", "oracle://x/y", "nonsense+driver://x"])
async def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(CatalogError):
        await Catalog.open(address, "here")


async def test_links_and_other_things_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "real.db").touch()
    (tmp_path / "link.db").symlink_to("real.db")
    (tmp_path / "directory.db").mkdir()
    os.mkfifo(tmp_path / "fifo.db")
    for name in ("link.db", "directory.db", "fifo.db"):
        with pytest.raises(CatalogError):
            await Catalog.open(f"sqlite:///{tmp_path}/{name}", "here")


async def test_a_catalog_that_was_restored_for_all_to_read_is_closed_again(tmp_path: Path) -> None:
    async with await Catalog.open(url(tmp_path), "here"):
        pass
    (tmp_path / "catalog.db").chmod(0o644)
    async with await Catalog.open(url(tmp_path), "here") as catalog:
        await enter(catalog, 1)
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes
    assert set(modes.values()) == {0o600}


WORKER = """
    import asyncio, sys
    from datetime import UTC, datetime
    from crd.catalog.catalog import Catalog
    from crd.errors import CrdError
    from crd.ids import Crid

    def say(what, number):
        print(what, number, flush=True)

    async def main():
        async with await Catalog.open(sys.argv[1], "here") as catalog:
            requests = catalog.requests
            await requests.recover(datetime.now(UTC), "boot", lambda pid, start: False)
            while True:
                say("accepted", (await requests.add(Crid(1), pids="new", files="keep", uid=0,
                                                    now=datetime.now(UTC))).number)
                request = await requests.claim(datetime.now(UTC))
                say("claimed", request.number)
                await requests.releasing(request.number, 42, 7, "boot")
                say("released", request.number)
                await requests.done(request.number, datetime.now(UTC))
                say("done", request.number)

    asyncio.run(main())
"""


async def test_kill_9_of_a_worker_in_a_loop(catalog: Catalog, catalog_url: str) -> None:
    """Each life ends by SIGKILL after a number of lines, so at other places of the loop."""
    await enter(catalog, 1)
    said: dict[str, list[int]] = {"accepted": [], "claimed": [], "released": [], "done": []}
    for n_lines in (1, 2, 3, 4, 7, 13):
        with subprocess.Popen([sys.executable, "-c", textwrap.dedent(WORKER), catalog_url],
                              stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout
            lines = [worker.stdout.readline() for _ in range(n_lines)]
            worker.send_signal(signal.SIGKILL)
            lines += [line for line in worker.stdout if line.endswith("\n")]
        for what, number in map(str.split, lines):
            said[what].append(int(number))
    await catalog.requests.recover(NOW, "boot", lambda _pid, _start: False)
    for what, numbers in said.items():
        assert len(set(numbers)) == len(numbers), f"{what} twice"
    states = {request.number: request.state for request in await catalog.requests.list()}
    assert set(said["accepted"]) <= set(states), "an accepted request is lost"
    assert set(states.values()) <= {"queued", "done", "failed"}
    assert {states[number] for number in said["done"]} == {"done"}
    assert {states[number] for number in said["claimed"]} <= {"done", "failed"}
    assert len(states) - len(said["accepted"]) <= 6, "at most one a life was not heard of"
