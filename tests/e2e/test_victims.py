"""Programs that hold one kernel object each and verify themselves: left running, and restarted from an older image."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.daemon import eventually
from tests.support.direct import checkpoint, killed_and_restarted_from_both, restart
from tests.support.victims import NAMES, Victim

pytestmark = pytest.mark.root

ARGUMENTS = {"rwhog": ["16"]}
CASES = [
    *((name, ARGUMENTS.get(name, [])) for name in NAMES if name != "stopped"),
    ("counter", ["4"]),
    ("counter", ["64"]),
    ("vector-musl", []),
    ("blocked-musl", []),
]
IDS = [" ".join([name, *arguments]) for name, arguments in CASES]


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)
def test_left_running(name: str, arguments: list[str], tmp_path: Path) -> None:
    with Victim(name, tmp_path, *arguments) as victim:
        for number in range(3):
            checkpoint(victim, tmp_path / f"{number}.image")
            victim.assert_unharmed()
        victim.verify()


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)
def test_killed_and_the_older_image_restarted(name: str, arguments: list[str], tmp_path: Path) -> None:
    with Victim(name, tmp_path, *arguments) as victim:
        pid = victim.pid
        killed_and_restarted_from_both(victim, tmp_path)
        assert victim.pid == pid
        victim.verify()


def test_a_stopped_task_stays_stopped(tmp_path: Path) -> None:
    with Victim("stopped", tmp_path) as victim:
        for name in ("older", "newer"):
            checkpoint(victim, tmp_path / name)
            eventually("it to be stopped again", lambda: victim.status()["State"].startswith("T"))
        victim.kill()
        done = restart(tmp_path / "older")
        assert done.returncode == 0, done.stderr
        victim.restarted_as(victim.pid)
        eventually("it to be stopped", lambda: victim.status()["State"].startswith("T"))
        os.kill(victim.pid, 18)
        victim.verify()
