"""Who is saved while the host goes down, and what stands guard until then; for real in tests/e2e/test_systemd.py."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from crd.catalog.catalog import Catalog
from crd.daemon import shutdown, systemd
from crd.daemon.shutdown import Guards, Shutdown
from crd.daemon.targets import Whereabouts
from crd.engine.api import After
from crd.errors import Busy, SystemdUnavailable, TargetBusy, TargetNotFound
from crd.ids import Crid
from crd.settings.models import TargetSettings
from crd.target import procfs, select
from tests.unit.catalog.test_catalog import NOW, enter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from crd.daemon.checkpoints import Order

HERE = "session-1.scope"


class Systemd:
    """Stands in for the module."""

    def __init__(self) -> None:
        self.active: set[str] = set()
        self.stopping = True
        self.fault = ""

    async def active_units(self, _pattern: str) -> set[str]:
        if self.fault:
            raise SystemdUnavailable(self.fault)
        return set(self.active)

    async def start(self, unit: str) -> None:
        self.active.add(unit)

    async def stop(self, unit: str) -> None:
        self.active.remove(unit)

    async def is_stopping(self) -> bool:
        return self.stopping


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Systemd:
    found = Systemd()
    for name in ("active_units", "start", "stop", "is_stopping"):
        monkeypatch.setattr(systemd, name, getattr(found, name))
    monkeypatch.setattr(select, "unit_of", lambda pid: HERE if pid == os.getpid() else "")
    return found


def target(name: str, tmp_path: Path, *, held: bool = False, **written: Any) -> Any:
    """A target that is this process."""
    pid_file = tmp_path / f"{name}.pid"
    pid_file.write_text(str(os.getpid()))
    settings = TargetSettings(**{"pidfile": pid_file, "every": 60, "at_shutdown": True, **written})
    return SimpleNamespace(name=name, settings=settings, held=held, running=False)


def guards_of(*targets: Any) -> Guards:
    return Guards({one.name: one for one in targets}, Whereabouts())


async def settled(guards: Guards) -> None:
    """Let it look once."""
    work = asyncio.create_task(guards.run())
    try:
        async with asyncio.timeout(60):
            while guards.changed.is_set() or not guards.changed._waiters:  # type: ignore[attr-defined]
                await asyncio.sleep(0.01)
    finally:
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work


async def test_a_guard_stands_before_each_unit_and_others_go(manager: Systemd, tmp_path: Path) -> None:
    manager.active = {"crd-shutdown@gone.service.service"}
    web = target("web", tmp_path)
    guards = guards_of(web, target("held", tmp_path, held=True, pidfile=None, unit="held"),
                       target("else", tmp_path, at_shutdown=False, pidfile=None, unit="else"),
                       target("db", tmp_path, pidfile=None, unit="db"),
                       target("all", tmp_path, pidfile=None, unit="all.slice"))
    await settled(guards)
    assert manager.active == {f"crd-shutdown@{unit}.service" for unit in (HERE, "db.service")}
    web.held = True
    await settled(guards)
    assert manager.active == {"crd-shutdown@db.service.service"}


async def test_that_there_is_none_is_told(manager: Systemd, tmp_path: Path,
                                          caplog: pytest.LogCaptureFixture) -> None:
    manager.fault = "no bus"
    guards = guards_of(target("web", tmp_path))
    await settled(guards)
    assert guards.fault == "no bus"
    assert "may not be saved when the host goes down: no bus" in caplog.text
    manager.fault = ""
    await settled(guards)
    assert guards.fault == ""


class Checkpoints:
    """Takes an image of a target, after some errors."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.taken: list[str] = []

    async def take(self, options: After, order: Order) -> Any:
        assert order.target
        assert order.kept
        assert (options, order.tags, order.target.running) == (After.KILL, ("shutdown",), True)
        if self.errors:
            raise self.errors.pop(0)
        image = SimpleNamespace(crid=Crid(1))
        await order.kept(image)
        self.taken.append(order.target.name)
        return image


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    async with await Catalog.open(f"sqlite:///{tmp_path}/catalog.db", "here") as opened:
        await enter(opened, 1)
        yield opened


def shutdown_of(catalog: Catalog, checkpoints: Checkpoints, *targets: Any) -> Shutdown:
    return Shutdown({one.name: one for one in targets}, Whereabouts(), checkpoints, catalog,  # type: ignore[arg-type]
                    SimpleNamespace(now=lambda: NOW), lambda _target, after: after, "this")  # type: ignore[arg-type,return-value]


async def test_what_lives_in_the_unit_is_saved_and_asked_for(manager: Systemd, catalog: Catalog,
                                                             tmp_path: Path) -> None:
    checkpoints = Checkpoints()
    found = shutdown_of(catalog, checkpoints, target("web", tmp_path, at_boot="any", files="rollback"),
                        target("db", tmp_path), target("held", tmp_path, held=True),
                        target("not", tmp_path, at_shutdown=False),
                        target("elsewhere", tmp_path, pidfile=tmp_path / "none"))
    assert await found.save("other.service") == []
    manager.stopping = False
    assert await found.save(HERE) == []
    assert checkpoints.taken == []
    manager.stopping = True
    saved = await found.save(HERE)
    assert sorted(one.target for one in saved if one.image) == ["db", "web"]
    [request] = await catalog.requests.list()
    assert (request.crid, request.pids, request.files, request.boot_id) == (1, "any", "rollback", "this")


async def test_what_is_busy_is_tried_again_and_an_error_told(manager: Systemd, catalog: Catalog,
                                                             tmp_path: Path) -> None:
    assert manager.stopping
    for errors, taken in (((TargetBusy(),), True), ((TargetBusy(), Busy(), TargetBusy("yet")), False)):
        web = target("web", tmp_path)
        [saved] = await shutdown_of(catalog, Checkpoints(*errors), web).save(HERE)
        assert (saved.image is not None, saved.error is not None, web.running) == (taken, not taken, False)
    assert await shutdown_of(catalog, Checkpoints(TargetNotFound()), target("web", tmp_path)).save(HERE) == []


async def test_a_checkpoint_under_way_is_waited_for(manager: Systemd, catalog: Catalog, tmp_path: Path) -> None:
    assert manager.stopping
    web = target("web", tmp_path)
    web.running = True
    work = asyncio.create_task(shutdown_of(catalog, checkpoints := Checkpoints(), web).save(HERE))
    await asyncio.sleep(2 * shutdown._NAP_SECONDS)
    assert checkpoints.taken == []
    web.running = False
    assert [one.target for one in await work] == ["web"]


def test_a_target_is_found_as_what_it_was_restarted_as(tmp_path: Path) -> None:
    web, where = target("web", tmp_path, pidfile=tmp_path / "none"), Whereabouts()
    with pytest.raises(TargetNotFound):
        where.find(web)
    start_time = procfs.stat(os.getpid()).start_time
    where.restarted("web", os.getpid(), start_time)
    assert where.find(web).pid == os.getpid()
    where.restarted("web", os.getpid(), start_time + 1)
    with pytest.raises(TargetNotFound, match="there is no pid file"):
        where.find(web)
