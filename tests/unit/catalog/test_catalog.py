"""Images, attempts, targets: entered, found, counted."""

from __future__ import annotations

import asyncio
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from crd.catalog.catalog import Catalog
from crd.catalog.rows import Image, Place
from crd.errors import (
    CatalogError,
    CatalogOutOfDate,
    CatalogTargetNotFound,
    FreezeTimeout,
    ImageNotFound,
    TargetExists,
)
from crd.ids import Crid, TargetName, parse_image_ref

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def image(crid: int, **values: Any) -> Image:
    return Image(**{
        "crid": Crid(crid), "host": "here", "target": "web", "pid": 42, "comm": "web", "uid": 0, "taken_at": NOW,
        "engine": "userspace", "method": "snapshot", "method_reason": "", "tasks": 1, "threads": 3,
        "image_bytes": 1000, "memory_bytes": 900, "stored_bytes": 0, "stop_seconds": 0.002, "duration_seconds": 0.1,
        "digest": "d" * 64, "header": {"magic": "0x00feed0cc0a2d200"}, **values})


async def enter(catalog: Catalog, crid: int, **values: Any) -> Image:
    await catalog.images.begin(image(crid, **values))
    return await catalog.images.finish(Crid(crid), 100)


async def test_an_image_counts_once_its_object_is_durable(catalog: Catalog) -> None:
    await catalog.images.begin(image(1))
    with pytest.raises(ImageNotFound):
        await catalog.images.get(Crid(1))
    assert await catalog.images.list() == []
    assert [found.crid for found in await catalog.images.storing()] == [1]
    assert await catalog.images.finish(Crid(1), 100) == image(1, stored_bytes=100)
    assert await catalog.images.storing() == []
    await catalog.images.drop(Crid(1))
    assert (await catalog.images.get(Crid(1))).stored_bytes == 100, "only what is being stored can be dropped"


async def test_references(catalog: Catalog) -> None:
    for crid, minutes, target in ((1, -30, "web"), (2, -10, "web"), (3, -5, "db"), (4, -1, None)):
        await enter(catalog, crid, taken_at=NOW + timedelta(minutes=minutes), target=target)
    for text, crid in (("web@latest", 2), ("web@15 min ago", 1), ("db@latest", 3), ("here/3", 3), ("4", 4)):
        assert (await catalog.images.find(parse_image_ref(text, now=NOW))).crid == crid, text
    for text in ("5", "there/3", "nobody@latest", "web@2 hours ago", "db@10 min ago"):
        with pytest.raises(ImageNotFound):
            await catalog.images.find(parse_image_ref(text, now=NOW))


async def test_lists_are_newest_first_and_filtered(catalog: Catalog) -> None:
    for crid in range(1, 6):
        await enter(catalog, crid, uid=crid % 2, taken_at=NOW + timedelta(minutes=crid))
    images = catalog.images
    assert [found.crid for found in await images.list()] == [5, 4, 3, 2, 1]
    assert [found.crid for found in await images.list(limit=2)] == [5, 4]
    assert [found.crid for found in await images.list(uid=1)] == [5, 3, 1]
    assert [found.crid for found in await images.list(since=NOW + timedelta(minutes=4))] == [5, 4]
    assert await images.list(target="other") == []
    assert await images.max_crid() == 5


async def test_lists_go_on_where_a_page_ended(catalog: Catalog) -> None:
    for crid in range(1, 8):
        await enter(catalog, crid, taken_at=NOW + timedelta(minutes=crid // 3), uid=crid % 2)
    everything = [found.crid for found in await catalog.images.list()]
    for uid, expected in ((None, everything), (1, [crid for crid in everything if crid % 2])):
        told: list[int] = []
        after: Place | None = None
        while page := await catalog.images.list(limit=2, after=after, uid=uid):
            assert len(page) <= 2
            told += [found.crid for found in page]
            after = Place(page[-1].taken_at, page[-1].crid, page[-1].host)
        assert told == expected
    assert [found.crid for found in await catalog.images.own(below=4, limit=2)] == [3, 2]
    assert await catalog.images.count() == 7


async def test_attempts(catalog: Catalog) -> None:
    attempts = catalog.checkpoints
    first = await attempts.start("web", 42, NOW)
    await attempts.finish(first, "ok", NOW, crid=1)
    second = await attempts.start("web", None, NOW)
    await attempts.finish(second, "failed", NOW, error=FreezeTimeout("too slow"), pid=43)
    await attempts.skip("db", NOW, "busy")
    third = await attempts.start("queue", 1, NOW)
    last = await attempts.last()
    assert (last["web"].state, last["web"].error, last["web"].pid) == ("failed", "engine.freeze-timeout", 43)
    assert last["db"].state == "skipped"
    assert await attempts.recover(NOW) == 1
    assert (await attempts.last())["queue"].number == third
    assert (await attempts.last())["queue"].state == "failed"


async def test_targets_and_holds(catalog: Catalog) -> None:
    name = TargetName("web")
    await catalog.targets.add(name, {"pid": 1, "every": "1s"})
    with pytest.raises(TargetExists):
        await catalog.targets.add(name, {})
    assert await catalog.targets.all() == {"web": {"pid": 1, "every": "1s"}}
    await catalog.targets.hold(name, held=True)
    await catalog.targets.hold(name, held=False)
    assert await catalog.targets.held() == {"web": False}
    await catalog.targets.remove(name)
    assert await catalog.targets.held() == {}
    with pytest.raises(CatalogTargetNotFound):
        await catalog.targets.remove(name)


async def test_many_writers_at_once_lose_nothing(catalog: Catalog) -> None:
    async def write(base: int) -> None:
        for crid in range(base, base + 10):
            await enter(catalog, crid)

    await asyncio.gather(*(write(base) for base in range(1, 81, 10)))
    assert len(await catalog.images.list()) == 80


async def test_the_file_is_private(sqlite_catalog: Catalog, tmp_path: Path) -> None:
    assert (tmp_path / "catalog.db").stat().st_mode & 0o777 == 0o600


async def test_a_foreign_database_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("create table recipes(name)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(CatalogOutOfDate):
        await Catalog.open(f"sqlite:///{path}", "here")
    with sqlite3.connect(path) as other:
        assert other.execute("select name from sqlite_master").fetchall() == [("recipes",)]
    other.close()
    assert len(before) == path.stat().st_size


async def test_rubbish_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rubbish.db"
    path.write_bytes(b"this is no database at all, " * 1000)
    with pytest.raises(CatalogOutOfDate):
        await Catalog.open(f"sqlite:///{path}", "here")
    with pytest.raises(CatalogError):
        await Catalog.open("no url at all", "here")
    with pytest.raises(CatalogError):
        await Catalog.open(f"sqlite:///{tmp_path}/no/such/directory/catalog.db", "here")
