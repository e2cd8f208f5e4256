"""What ``crctl status`` finds wrong: each thing by itself, and nothing while all is well."""

from __future__ import annotations

import errno
import os
import shutil
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from crd.catalog.catalog import Catalog
from crd.daemon.checkpoints import Failure
from crd.daemon.diagnosis import ERROR, WARNING, Seen, diagnose, look
from crd.errors import CatalogUnavailable, TargetNotFound
from crd.ids import Crid
from crd.metrics.names import Metrics
from crd.reserve import RESERVE_BYTES
from crd.settings.models import Settings
from tests.unit.catalog.test_catalog import NOW, enter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SINCE = NOW - timedelta(hours=2)


class Usage(NamedTuple):
    """As of shutil.disk_usage."""

    total: int
    used: int
    free: int


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a diagnosis looks at, of a daemon that is well."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(1 << 40, 1 << 39, 1 << 39))
    metrics = Metrics()
    metrics.add_target("web", NOW)
    return SimpleNamespace(
        clock=SimpleNamespace(now=lambda: NOW), started_at=NOW, without_row=[], host="here",
        engine="userspace", features={"note_writes": True},
        settings=Settings(daemon={"state_dir": tmp_path}), metrics=metrics,  # type: ignore[arg-type]
        spool=SimpleNamespace(waiting=SimpleNamespace(objects=0, stored_bytes=0, error="", away_since=None)),
        health=SimpleNamespace(faults=[], faults_since=None), guards=SimpleNamespace(fault=""),
        checkpoints=SimpleNamespace(failing={}), reserve=SimpleNamespace(held_bytes=RESERVE_BYTES),
        scheduler=SimpleNamespace(clock_set_back_at=None, targets={
            "web": SimpleNamespace(name="web", held=False, next_at=NOW)}))


async def found(app: Any, seen: Seen | None = None) -> list[tuple[str, str, datetime | None]]:
    problems = await diagnose(app, seen or Seen(queue=(0, 0, None)))
    assert all(problem.message and problem.hint for problem in problems)
    return [(problem.level, problem.code, problem.since) for problem in problems]


async def test_nothing_while_all_is_well(app: Any) -> None:
    assert await found(app) == []


def _fail(app: Any) -> None:
    app.checkpoints.failing["web"] = Failure(TargetNotFound("no process fits"), SINCE)


def _due(app: Any) -> None:
    with app.metrics.of("web") as metrics:
        metrics.due_since = SINCE.timestamp()


FAULTS: dict[str, tuple[Callable[[Any], object], tuple[str, str, datetime | None]]] = {
    "fails": (_fail, (ERROR, "target.not-found", SINCE)),
    "late": (_due, (ERROR, "target.no-image", SINCE)),
    "never due": (lambda app: setattr(app.scheduler.targets["web"], "next_at", None),
                  (WARNING, "target.never-due", None)),
    "unwell": (lambda app: vars(app.health).update(faults=["scrub has ended"], faults_since=SINCE),
               (ERROR, "daemon.unwell", SINCE)),
    "no guard": (lambda app: setattr(app.guards, "fault", "no bus"), (WARNING, "daemon.no-guard", None)),
    "no row": (lambda app: setattr(app, "without_row", [Crid(7)]), (WARNING, "archive.without-row", NOW)),
    "clock": (lambda app: setattr(app.scheduler, "clock_set_back_at", NOW - timedelta(minutes=1)),
              (WARNING, "daemon.clock-set-back", NOW - timedelta(minutes=1))),
    "no notes": (lambda app: app.features.update(note_writes=False), (WARNING, "engine.no-notes", None)),
    "store away": (lambda app: vars(app.spool.waiting).update(error="no answer", away_since=SINCE),
                   (ERROR, "archive.away", SINCE)),
    "spool": (lambda app: setattr(app.spool.waiting, "stored_bytes", 4 << 30),
              (WARNING, "archive.spool-filling", None)),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_each_fault_is_found(app: Any, name: str) -> None:
    provoke, expected = FAULTS[name]
    provoke(app)
    assert await found(app) == [expected]


@pytest.mark.parametrize("name", ["fails", "late", "never due"])
async def test_a_target_that_is_held_may_do_nothing(app: Any, name: str) -> None:
    FAULTS[name][0](app)
    app.scheduler.targets["web"].held = True
    assert await found(app) == []


@pytest.mark.parametrize(("free", "expected"), [
    (11 << 30, []), (9 << 30, [(WARNING, "disk.nearly-full", None)]), (1 << 20, [(ERROR, "disk.full", None)])])
async def test_disks(app: Any, monkeypatch: pytest.MonkeyPatch, free: int, expected: list[object]) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(1 << 40, 0, free))
    assert await found(app) == expected


@pytest.mark.parametrize(("held", "level"), [(RESERVE_BYTES - 1, WARNING), (0, ERROR)])
async def test_what_is_kept_back_for_a_full_disk(app: Any, held: int, level: str) -> None:
    app.reserve.held_bytes = held
    assert await found(app) == [(level, "disk.reserve-used", None)]


async def test_a_disk_that_fails(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_path: Path) -> Usage:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    monkeypatch.setattr(shutil, "disk_usage", fails)
    assert await found(app) == [(ERROR, "disk.away", None)]
async def test_what_the_catalog_says(app: Any) -> None:
    seen = Seen(queue=(3, 0, SINCE), hosts={"here": NOW, "there": SINCE}, damaged=[Crid(4), Crid(7)],
                missing=[Crid(5)])
    assert await found(app, seen) == [
        (ERROR, "catalog.image-damaged", None), (ERROR, "archive.image-missing", NOW),
        (ERROR, "restart.queue-stuck", SINCE), (WARNING, "catalog.host-unheard", SINCE)]


async def test_a_catalog_that_is_away(app: Any) -> None:
    error = CatalogUnavailable("the catalog's server does not answer", hint="Start it.")
    away = SimpleNamespace(requests=SimpleNamespace(queue=lambda: _fails(error)))
    assert await found(app, await look(away)) == [(ERROR, "catalog.unavailable", None)]  # type: ignore[arg-type]


async def _fails(error: Exception) -> None:
    raise error


async def test_damaged_images_are_looked_for_in_the_catalog(tmp_path: Path) -> None:
    async with await Catalog.open(f"sqlite:///{tmp_path}/catalog.db", "here") as catalog:
        for crid in (1, 2, 3):
            await enter(catalog, crid)
        await catalog.images.damaged(Crid(2), "a bit")
        assert await look(catalog, [Crid(3), Crid(4)]) == Seen(queue=(0, 0, None), damaged=[Crid(2)], missing=[Crid(3)])


