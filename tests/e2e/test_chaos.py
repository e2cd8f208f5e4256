"""kill -9 of the daemon and of its workers, five hundred times at random moments, under load."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from crd.api.client import Client
from crd.errors import CrdError
from tests.support.daemon import RunningDaemon, children, eventually
from tests.support.restless import Restless
from tests.support.workload import CountingProgram

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

KILLS = 500
WORKERS_A_LIFE = 45
PROGRAMS = 3


class Load(Restless):
    """Threads that ask for checkpoints of processes, again and again, whatever becomes of the daemon."""

    def __init__(self, daemon: RunningDaemon, pids: list[int]) -> None:
        super().__init__(partial(self._ask, daemon.socket, pid) for pid in pids)
        self.acknowledged: list[int] = []

    def _ask(self, socket: Path, pid: int) -> None:
        while not self.over.is_set():
            try:
                with Client(socket) as client:
                    while not self.over.is_set():
                        try:
                            [*_, last] = client.stream("Checkpoint", pid=pid)
                            self.acknowledged.append(last["image"]["crid"])
                        except CrdError as error:
                            if error.code == "api.daemon-unavailable":
                                raise
            except CrdError:
                time.sleep(0.02)


def kill_workers(daemon: RunningDaemon, chance: random.Random, times: int) -> int:
    """Kill workers at random moments of their lives; return how many."""
    nursery, killed, deadline = daemon.nursery(), 0, time.monotonic() + 60
    while killed < times and time.monotonic() < deadline:
        if workers := children(nursery):
            time.sleep(chance.expovariate(20))
            with suppress(ProcessLookupError):
                os.kill(chance.choice(workers), signal.SIGKILL)
                killed += 1
        else:
            time.sleep(0.001)
    return killed


def ended(daemon: RunningDaemon, number: int) -> dict[str, Any]:
    """Wait until a request has ended, and return it."""
    def ask() -> dict[str, Any] | None:
        request = daemon.crctl("request", "show", str(number))
        return request if request["state"] in {"done", "failed"} else None

    found: dict[str, Any] = eventually("the request to end", ask)
    return found


def check_request(daemon: RunningDaemon, doubled: CountingProgram, number: int) -> str:
    """A request was carried out once or not at all; what it made is ended."""
    state: str = ended(daemon, number)["state"]
    assert doubled.is_there() == (state == "done")
    if state == "done":
        doubled.assert_unharmed()
        doubled.kill()
    return state


def objects(daemon: RunningDaemon) -> set[int]:
    return {int(path.name[:16], 16) for path in (daemon.state / "archive").rglob("*.image")}


@pytest.mark.timeout(1800)
def test_five_hundred_kills_harm_nobody_and_lose_nothing(tmp_path: Path) -> None:
    chance, kills, outcomes = random.Random(19), 0, []
    homes = [tmp_path / f"program-{number}" for number in range(PROGRAMS + 1)]
    for home in homes:
        home.mkdir()
    config = "".join(f'[targets.t{number}]\npidfile = "{home}/program.pid"\nevery = "1s"\nkeep = "last=3"\n'
                     for number, home in enumerate(homes[:-1])) + "[engine]\nworkers = 3\n"
    with ExitStack() as stack:
        programs = [stack.enter_context(CountingProgram(home, ballast_mib=4)) for home in homes[:-1]]
        doubled = stack.enter_context(CountingProgram(homes[-1]))
        daemon = stack.enter_context(RunningDaemon(tmp_path, config))
        saved = str(daemon.crctl("checkpoint", "--pid", str(doubled.pid), "--kill")["crid"])
        doubled.process.wait(timeout=60)
        with Load(daemon, [program.pid for program in programs]) as load:
            while kills < KILLS:
                kills += kill_workers(daemon, chance, WORKERS_A_LIFE)
                request = daemon.crctl("restart", saved)["number"]
                time.sleep(chance.uniform(0, 0.6))
                daemon.stop(signal.SIGKILL)
                kills += 1
                daemon.start()
                outcomes.append(check_request(daemon, doubled, request))
                for program in programs:
                    program.assert_unharmed()
        eventually("all to be done", lambda: daemon.crctl("status")["running"] == 0)
        daemon.stop(signal.SIGTERM)
        daemon.start()
        assert not doubled.is_there(), "a request was carried out twice"
        images = {image["crid"]: image for image in daemon.crctl("images")}
        eventually("catalog and archive to agree", lambda: objects(daemon) == {
            image["crid"] for image in daemon.crctl("images")})
        assert daemon.crctl("scrub")["damaged"] == []
        untargeted = {crid for crid, image in images.items() if image["target"] is None}
        assert {*load.acknowledged} <= untargeted, "an image that was acknowledged is lost"
        assert len(load.acknowledged) > 10
        for program in programs:
            program.assert_unharmed()
            program.assert_counted_without_gap_since(0)
        assert {"done"} <= {*outcomes}, outcomes
