"""Attempts to take an image: each is entered, counted and ended, whatever comes of it."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from crd.api.access import Peer
from crd.archive.archive import Archive
from crd.archive.stores.memory import MemoryStore
from crd.catalog.catalog import Catalog
from crd.daemon.checkpoints import Checkpoints, Order
from crd.daemon.handlers import Handlers
from crd.daemon.meter import Meter
from crd.engine.api import CheckpointOptions
from crd.errors import Busy, CrdError, FreezeTimeout, TargetNotFound, TargetUnsupported
from crd.metrics.names import Metrics
from tests.unit.daemon.test_scheduler import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = CheckpointOptions()
NO_DESCRIPTORS = OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize(("error", "state", "code"), [
    (FreezeTimeout(), "failed", FreezeTimeout.code), (TargetUnsupported(), "refused", TargetUnsupported.code),
    (NO_DESCRIPTORS, "failed", CrdError.code)], ids=lambda value: getattr(value, "code", None))
async def test_an_attempt_that_fails_is_ended(tmp_path: Path, error: Exception, state: str, code: str) -> None:
    async def fails(*_arguments: Any, **_options: Any) -> None:
        raise error

    metrics, target = Metrics(), SimpleNamespace(name="web")
    metrics.add_target("web")
    async with await Catalog.open(f"sqlite+aiosqlite:///{tmp_path}/catalog.db", "here") as catalog:
        checkpoints = Checkpoints(
            SimpleNamespace(checkpoint=fails), catalog, metrics, FakeClock(),
            Meter(Archive(MemoryStore()), None, metrics), 1, lambda _name: None,
            SimpleNamespace(find=lambda _target: SimpleNamespace(pid=7)))
        with pytest.raises(type(error)):
            await checkpoints.take(OPTIONS, Order(target=target))
        await checkpoints.take_due(target, OPTIONS, 0.0)
        assert checkpoints.running == 0
        assert checkpoints.failing["web"].error.code == code
        last = (await catalog.checkpoints.last())["web"]
    assert (last.state, last.error, last.pid) == (state, code, 7)
    with metrics.of("web") as counted:
        assert counted.results[state] == counted.failures[code] == 2


async def test_nobody_waits_for_a_look_at_all_processes(tmp_path: Path) -> None:
    on_its_way = threading.Event()

    def find(_target: object) -> SimpleNamespace:
        assert threading.current_thread() is not threading.main_thread()
        on_its_way.set()
        raise TargetNotFound

    metrics = Metrics()
    metrics.add_target("web")
    async with await Catalog.open(f"sqlite:///{tmp_path}/catalog.db", "here") as catalog:
        checkpoints = Checkpoints(SimpleNamespace(), catalog, metrics, FakeClock(),
                                  Meter(Archive(MemoryStore()), None, metrics), 1, lambda _name: None,
                                  SimpleNamespace(find=find))
        with pytest.raises(TargetNotFound):
            await checkpoints.take(OPTIONS, Order(target=SimpleNamespace(name="web")))
    assert on_its_way.is_set()


@pytest.mark.parametrize("running", [False, True])
async def test_who_does_not_wait_for_an_image_still_hears_that_it_is_refused(*, running: bool) -> None:
    taken = asyncio.Event()

    async def take(_options: CheckpointOptions, _order: Order) -> None:
        await taken.wait()

    target = SimpleNamespace(name="web", running=running)
    jobs: list[asyncio.Task[Any]] = []
    handlers = Handlers(SimpleNamespace(
        scheduler=SimpleNamespace(targets={"web": target}), checkpoints=SimpleNamespace(take=take),
        checkpoint_options=lambda *_: OPTIONS, start=lambda work: jobs.append(asyncio.create_task(work)) or jobs[-1]))
    call = handlers.handle("Checkpoint", {"target": "web", "pid": None, "after": None, "tag": None, "wait": False,
                                          "connection": None}, Peer(0, 0, 1, frozenset(), is_admin=True), None)
    if running:
        with pytest.raises(Busy):
            await call
    else:
        assert (await call)["stage"] == "begun"
        assert target.running
        taken.set()
    await asyncio.wait(jobs)
    assert target.running == running
