"""When the daemon says that it is well, and when it does not."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from crd.catalog.catalog import Catalog
from crd.daemon.health import Health
from crd.daemon.notify import keep, passed_fds, watchdog_seconds
from crd.daemon.scheduler import Scheduler
from crd.engine.pool import WorkerPool
from tests.unit.daemon.test_scheduler import FakeClock, Recorder, settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What systemd hears."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        yield listener


class Body:
    """What a daemon has."""

    def __init__(self, catalog: Catalog, workers: WorkerPool) -> None:
        self.clock = FakeClock()
        recorder = Recorder()
        self.scheduler = Scheduler(self.clock, recorder.take, recorder.skip)
        self.workers = workers
        self.health = Health(self.scheduler, workers, catalog, self.clock, lambda: "2 targets")


@asynccontextmanager
async def body(tmp_path: Path) -> AsyncIterator[Body]:
    async with (await Catalog.open(f"sqlite:///{tmp_path}/catalog.db", "here") as catalog,
                WorkerPool() as workers):
        found = Body(catalog, workers)
        yield found
        await found.scheduler.close()


async def test_signs_of_life_while_all_is_well(tmp_path: Path, told: socket.socket) -> None:
    assert watchdog_seconds() == 10.0
    async with body(tmp_path) as found:
        found.scheduler.add("web", settings(every="10s"), source="settings", held=False)
        running = asyncio.create_task(found.health.run(()))
        assert await asyncio.to_thread(told.recv, 1000) == b"WATCHDOG=1\nSTATUS=2 targets"
        running.cancel()


async def test_none_when_a_schedule_stands_still_or_a_job_has_ended(tmp_path: Path, told: socket.socket) -> None:
    async with body(tmp_path) as found:
        stuck = found.scheduler.add("web", settings(every="10s"), source="settings", held=False)
        assert stuck.loop
        stuck.loop.cancel()
        ended = asyncio.create_task(asyncio.sleep(0), name="scrub")
        await asyncio.sleep(0.01)
        running = asyncio.create_task(found.health.run((ended,)))
        assert await asyncio.to_thread(told.recv, 1000) == (
            b"STATUS=Unwell: scrub has ended; the schedule of web stands still")
        assert found.health.faults == ["scrub has ended", "the schedule of web stands still"]
        found.scheduler.remove("web")
        assert await found.health.look(()) == []
        running.cancel()


async def test_a_schedule_that_is_far_behind_stands_still(tmp_path: Path) -> None:
    async with body(tmp_path) as found:
        target = found.scheduler.add("web", settings(every="10s"), source="settings", held=False)
        assert found.scheduler.stuck() == []
        found.clock.at = found.clock.at.replace(year=2027)
        assert found.scheduler.stuck() == ["web"]
        target.next_at = None
        assert found.scheduler.stuck() == []


async def answers_at_once() -> None:
    """However busy the machine is."""


@pytest.mark.root
async def test_none_while_the_engine_hangs(tmp_path: Path, told: socket.socket,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    async with body(tmp_path) as found:
        assert found.workers._nursery
        monkeypatch.setattr(found.health, "_catalog", SimpleNamespace(requests=SimpleNamespace(queue=answers_at_once)))
        os.kill(found.workers._nursery.pid, signal.SIGSTOP)
        assert await found.health.look(()) == ["the engine does not answer"]
        os.kill(found.workers._nursery.pid, signal.SIGCONT)


def test_descriptors_go_to_systemd_and_come_back(told: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    keep("metrics", write_end)
    assert told.recv(1000) == b"FDSTOREREMOVE=1\nFDNAME=metrics"
    data, fds, _, _ = socket.recv_fds(told, 1000, 4)
    assert data == b"FDSTORE=1\nFDNAME=metrics"
    os.write(fds[0], b"x")
    assert os.read(read_end, 1) == b"x"
    for fd in (read_end, write_end, *fds):
        os.close(fd)
    for name, value in (("PID", os.getpid()), ("FDS", 2), ("FDNAMES", "api:metrics")):
        monkeypatch.setenv(f"LISTEN_{name}", str(value))
    seen: list[int] = []
    monkeypatch.setattr(os, "set_inheritable", lambda fd, _: seen.append(fd))
    assert passed_fds() == {"api": 3, "metrics": 4}
    assert seen == [3, 4]
    monkeypatch.setenv("LISTEN_PID", "1")
    assert passed_fds() == {}
