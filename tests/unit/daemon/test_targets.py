"""Targets that are changed from several sides at once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from crd.api.access import Peer
from crd.daemon.app import App
from crd.daemon.handlers import Handlers
from crd.daemon.scheduler import Scheduler
from crd.errors import CatalogUnavailable
from crd.settings.models import Settings
from tests.unit.daemon.test_scheduler import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

ROOT = Peer(0, 0, 1, frozenset(), is_admin=True)


class FakeCatalog:
    """Targets that were added and held, and an answer that may take a while or fail."""

    def __init__(self) -> None:
        self.targets = self.images = self
        self.added: dict[str, Any] = {}
        self.kept: dict[str, bool] = {}
        self.answers = asyncio.Event()
        self.away = False

    async def all(self) -> dict[str, Any]:
        return {**self.added}

    async def held(self) -> dict[str, bool]:
        return {**self.kept}

    async def last_taken(self) -> dict[str, Any]:
        await self.answers.wait()
        if self.away:
            raise CatalogUnavailable
        return {}

    async def add(self, name: str, definition: dict[str, Any]) -> None:
        self.added[name] = definition

    async def hold(self, name: str, *, held: bool) -> None:
        self.kept[name] = held


async def nothing(*_: object) -> None:
    pass


@pytest.fixture
async def app(tmp_path: Path) -> App:
    (tmp_path / "crd.toml").write_text('[targets.web]\npid = 7\nevery = "2min"\n')
    made = App(Settings(targets={"web": {"pid": 7, "every": "1min"}}), tmp_path / "crd.toml", FakeClock())
    made.catalog = FakeCatalog()
    made.scheduler = Scheduler(made.clock, nothing, nothing)
    made.guards = SimpleNamespace(changed=asyncio.Event())
    made.tracks = SimpleNamespace(drop=lambda _name: None)
    made.checkpoints = SimpleNamespace(failing={}, limit=lambda _workers: None)
    made.pipeline, made.retention = SimpleNamespace(), SimpleNamespace(apply_all=nothing)
    made.add_target("web", made.settings.targets["web"], None, source="settings", held=False)
    made.ready.set()
    return made


async def test_a_target_that_is_held_while_the_settings_are_read_again_stays_held(app: App) -> None:
    reloading = asyncio.create_task(app.reload())
    holding = asyncio.create_task(Handlers(app).handle("HoldTarget", {"name": "web"}, ROOT, None))
    for _ in range(10):
        await asyncio.sleep(0)
    app.catalog.answers.set()
    await asyncio.gather(reloading, holding)
    assert app.scheduler.targets["web"].settings.every == 120
    assert app.scheduler.targets["web"].held
    await app.scheduler.close()


async def test_a_target_that_cannot_be_added_is_not_in_the_catalog_either(app: App) -> None:
    app.catalog.away = True
    app.catalog.answers.set()
    with pytest.raises(CatalogUnavailable):
        await Handlers(app).handle("AddTarget", {"target": {"name": "db", "pid": 8, "every": "1s", "held": False}},
                                   ROOT, None)
    assert not app.catalog.added
    await app.scheduler.close()
