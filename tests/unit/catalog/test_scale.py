"""What is asked for often costs no more when there are more images: SQLite finds it by an index, in its order."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text

from crd.catalog import checkpoints as checkpoints_module
from crd.catalog.rows import Place
from crd.ids import Crid, ImageRef, TargetName
from tests.unit.catalog.test_catalog import NOW, enter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.engine import Connection

    from crd.catalog.catalog import Catalog

WEB = TargetName("web")
QUESTIONS: dict[str, Callable[[Catalog], Awaitable[object]]] = {
    "a page": lambda catalog: catalog.images.list(limit=10),
    "another page": lambda catalog: catalog.images.list(limit=10, after=Place(NOW, Crid(1), "here")),
    "of a target": lambda catalog: catalog.images.list(limit=10, target=WEB),
    "of a user": lambda catalog: catalog.images.list(limit=10, uid=1000),
    "of the host": lambda catalog: catalog.images.own(limit=10, below=5),
    "latest": lambda catalog: catalog.images.find(ImageRef(target=WEB)),
    "at a time": lambda catalog: catalog.images.find(ImageRef(target=WEB, until=NOW)),
    "by crid": lambda catalog: catalog.images.get(Crid(1)),
    "relative": lambda catalog: catalog.images.relative(1, WEB),
    "for retention": lambda catalog: catalog.images.choices(WEB),
    "last of each target": lambda catalog: catalog.images.last_taken(),
    "not checked for longest": lambda catalog: catalog.images.unchecked_since(NOW),
    "checked last": lambda catalog: catalog.images.last_verified(),
    "being stored": lambda catalog: catalog.images.storing(),
    "largest crid": lambda catalog: catalog.images.max_crid(),
    "last attempt of each target": lambda catalog: catalog.checkpoints.last(),
    "an attempt": lambda catalog: catalog.checkpoints.start(WEB, 1, NOW),
    "requests": lambda catalog: catalog.requests.list(limit=10, below=100),
    "requests of a user": lambda catalog: catalog.requests.list(limit=10, uid=1000),
    "the queue": lambda catalog: catalog.requests.queue(),
    "a claim": lambda catalog: catalog.requests.claim(NOW),
}


def plan(statement: str, parameters: Any, connection: Connection) -> list[str]:
    """The steps of a statement, as SQLite describes them."""
    return [row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]


SCANS = {"SCAN names", "SCAN CONSTANT ROW"}
"""Of the targets that ``last_taken`` has found."""


@pytest.mark.parametrize("name", QUESTIONS)
async def test_no_question_looks_at_everything(sqlite_catalog: Catalog, name: str) -> None:
    await enter(sqlite_catalog, 1)
    database = sqlite_catalog._database
    asked: list[tuple[str, object]] = []
    event.listen(database._backend.engine, "before_cursor_execute",
                 lambda _connection, _cursor, statement, parameters, *_: asked.append((statement, parameters)))
    await QUESTIONS[name](sqlite_catalog)
    statements = [(statement, parameters) for statement, parameters in asked
                  if " " in statement and not statement.startswith("PRAGMA")]
    assert statements
    for statement, parameters in statements:
        for step in await database.read(partial(plan, statement, parameters)):
            assert not step.startswith("SCAN") or step in SCANS or name == "a page", (statement, step)
            assert step != "USE TEMP B-TREE FOR ORDER BY", (statement, step)


async def test_the_last_good_image_of_each_target(catalog: Catalog) -> None:
    assert await catalog.images.last_taken() == {}
    for crid, target in enumerate(("web", None, "db", "web", "app", "db"), 1):
        await enter(catalog, crid, target=target, taken_at=NOW + timedelta(minutes=crid))
    await catalog.images.damaged(Crid(6), "a bit")
    await catalog.images.damaged(Crid(5), "a bit")
    assert await catalog.images.last_taken() == {"web": NOW + timedelta(minutes=4), "db": NOW + timedelta(minutes=3)}


async def test_what_was_not_checked_for_longest(catalog: Catalog) -> None:
    for crid in (1, 2, 3):
        await enter(catalog, crid, taken_at=NOW + timedelta(minutes=crid))
    later = NOW + timedelta(days=1)
    order = []
    for minutes in range(3):
        found = await catalog.images.unchecked_since(later)
        assert found
        order.append(found.crid)
        await catalog.images.verified(found.crid, later + timedelta(minutes=minutes))
    assert order == [1, 2, 3]
    assert await catalog.images.unchecked_since(later) is None
    found = await catalog.images.unchecked_since(later + timedelta(days=1))
    assert found
    assert found.crid == 1
    assert await catalog.images.last_verified() == later + timedelta(minutes=2)


async def test_attempts_do_not_pile_up(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints_module, "ATTEMPTS_KEPT", 3)
    running = await catalog.checkpoints.start("web", 1, NOW)
    other = await catalog.checkpoints.start("db", 1, NOW)
    numbers = []
    for target in ("web", None) * 5:
        numbers.append(await catalog.checkpoints.start(target, 1, NOW))
        await catalog.checkpoints.finish(numbers[-1], "ok", NOW)
    left = await catalog._database.read(
        lambda connection: {*connection.execute(text("SELECT number FROM checkpoints")).scalars()})
    assert left == {running, other, *numbers[-6:]}
    assert (await catalog.checkpoints.last())["web"].number == numbers[-2]
