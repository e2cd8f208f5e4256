"""What asking the catalog costs when it has a million images, beside the same with a thousand.

``python -m tests.bench.catalog`` runs it alone.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from crd.catalog.catalog import Catalog
from crd.catalog.checkpoints import ATTEMPTS_KEPT
from crd.catalog.rows import Image, Place
from crd.catalog.schema import checkpoints, images
from crd.daemon.pages import ROWS_MAX
from crd.ids import CRID_MAX, Crid, ImageRef, TargetName
from crd.retention.policy import decide
from crd.settings.keep import parse_keep
from tests.support.postgres import BIN, PostgresServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

FEW, MANY = 1_000, 1_000_000
_OF_A_TARGET = 1_000
_BEGINNING = datetime(2024, 1, 1, tzinfo=UTC)
_STEP = timedelta(seconds=30)
_ROWS_AT_ONCE = 50_000
_FREE_PID = 4_000_000
_SECONDS = {"sqlite": "strftime('%Y-%m-%d %H:%M:%f', '{at}', (value * {step}) || ' seconds') || '000'",
            "postgresql": "timestamp '{at}' + value * interval '{step} seconds'"}


def catalog(row: Callable[[str, int, str, str, str], None], n: int, many: int = MANY) -> None:
    """Measure SQLite, and PostgreSQL where it is installed."""
    with tempfile.TemporaryDirectory() as home:
        asyncio.run(_compare(row, n, "SQLite", *(f"sqlite:///{home}/{size}.db" for size in ("few", "many")),
                             many=many))
    if BIN.exists():
        with PostgresServer() as server:
            asyncio.run(_compare(row, n, "PostgreSQL", server.database("few"), server.database("many"), many=many))


async def _compare(row: Callable[[str, int, str, str, str], None], n: int, kind: str, few_url: str, many_url: str, *,
                   many: int) -> None:
    async with AsyncExitStack() as stack:
        filled = []
        for url, size in ((few_url, FEW), (many_url, many)):
            opened = await stack.enter_async_context(await Catalog.open(url, "here"))
            await fill(opened, size, kind.lower())
            filled.append((opened, _questions(opened, size)))
        (_, of_few), (_, of_many) = filled
        for what in of_many:
            few, more = [statistics.median([await _seconds(ask[what]) for _ in range(n)]) for ask in (of_few, of_many)]
            row(f"{kind} with {many} images: {what}", n, f"{more * 1e3:.1f} ms", f"{few * 1e3:.1f} ms with {FEW}",
                f"{more / few:.1f}")


async def _seconds(ask: Callable[[], Awaitable[object]]) -> float:
    began = time.monotonic()
    await ask()
    return time.monotonic() - began


def _image(crid: int, **values: Any) -> Image:
    return Image(**{
        "crid": Crid(crid), "host": "here", "target": "target-0", "pid": crid % 30_000 + 2, "comm": "python3", "uid": 0,
        "taken_at": _BEGINNING + crid * _STEP, "engine": "userspace", "method": "snapshot",
        "method_reason": "the kernel offers all of it", "tasks": 1, "threads": 3, "image_bytes": 10 << 20,
        "memory_bytes": 9 << 20, "stored_bytes": 1 << 20, "stop_seconds": 0.002, "duration_seconds": 0.1,
        "digest": "d" * 64, "header": {"magic": "0x00feed0cc0a2d200", "release": "6.18.0", "machine": "x86_64"},
        **values})


async def fill(opened: Catalog, size: int, kind: str) -> None:
    """Have so many images, a thousand of each target, and as many attempts as stay of these targets."""
    await opened.images.begin(_image(1))
    await opened.images.finish(Crid(1), 1 << 20)
    await opened.checkpoints.start("target-0", 2, _BEGINNING)
    step = int(_STEP.total_seconds())
    given = {"crid": "value", "number": "value", "target": f"'target-' || (value % {max(1, size // _OF_A_TARGET)})",
             "pid": "value % 30000 + 2", "state": "'ok'",
             "taken_at": _SECONDS[kind].format(at=f"{_BEGINNING:%Y-%m-%d %H:%M:%S}", step=step)}
    attempts = size * ATTEMPTS_KEPT // _OF_A_TARGET
    for table, key, rows in ((images, "crid", size), (checkpoints, "number", attempts)):
        columns = [column.name for column in table.columns]
        values = ", ".join(given.get(name, f"{table.name}.{name}") for name in columns)
        for first in range(2, rows + 1, _ROWS_AT_ONCE):  # a statement that takes too long is given up
            last = min(rows, first + _ROWS_AT_ONCE - 1)
            await _execute(opened, (
                f"WITH RECURSIVE numbers(value) AS (SELECT {first} UNION ALL SELECT value + 1 FROM numbers "
                f"WHERE value < {last}) INSERT INTO {table.name} ({', '.join(columns)}) "
                f"SELECT {values} FROM {table.name}, numbers WHERE {table.name}.{key} = 1"))
    if kind == "postgresql":
        await _execute(opened, f"SELECT setval(pg_get_serial_sequence('checkpoints', 'number'), {attempts})")
        await _execute(opened, "ANALYZE")  # as autovacuum does within a minute


async def _execute(opened: Catalog, statement: str) -> None:
    await opened._database.write(lambda connection: connection.execute(text(statement)))


def _questions(opened: Catalog, size: int) -> dict[str, Callable[[], Awaitable[object]]]:
    """Return what is asked, by name."""
    found, middle = opened.images, _BEGINNING + size // 2 * _STEP
    target, now = TargetName("target-0"), _BEGINNING + size * _STEP
    keep = parse_keep("last=24 within=2d hourly=24 daily=7 weekly=4 monthly=12")
    crids = range(size + 1, CRID_MAX)
    fresh = iter(crids)

    async def store() -> None:
        crid = Crid(next(fresh))
        number = await opened.checkpoints.start(target, 7, now)
        await found.relative(_FREE_PID, target)
        await found.begin(_image(crid, target=target))
        await found.finish(crid, 1)
        await opened.checkpoints.finish(number, "ok", now, crid=crid)

    async def verdicts() -> None:
        decide(await found.choices(target), keep, min_images=1, now=now, zone=None)

    return {
        "a page of images": lambda: found.list(limit=ROWS_MAX + 1),
        "a page in the middle": lambda: found.list(limit=ROWS_MAX + 1, after=Place(middle, Crid(size // 2), "here")),
        "images of a target, a page": lambda: found.list(limit=ROWS_MAX + 1, target=target),
        "images of a user who has none": lambda: found.list(limit=ROWS_MAX + 1, uid=1000),
        "TARGET@latest": lambda: found.find(ImageRef(target=target)),
        "TARGET@TIME": lambda: found.find(ImageRef(target=target, until=middle)),
        "an image by its crid": lambda: found.get(Crid(size // 2)),
        "all that a checkpoint enters": store,
        "the newest image of a process or of a target, neither known": lambda: found.relative(_FREE_PID, "none"),
        "what retention decides for a target": verdicts,
        "the last image of each target": found.last_taken,
        "the last attempt of each target": opened.checkpoints.last,
        "the queue": opened.requests.queue,
        "what a scrub takes next": lambda: found.unchecked_since(middle),
        "when it was scrubbed last": found.last_verified,
        "what was being stored": found.storing,
        "settling at the start": lambda: found.settle([Crid(crid) for crid in range(1, size + 1)], {}),
        "attempts that were under way at the start": lambda: opened.checkpoints.recover(now),
    }


if __name__ == "__main__":
    catalog(lambda *cells: print(" | ".join(map(str, cells)), flush=True), 5)
