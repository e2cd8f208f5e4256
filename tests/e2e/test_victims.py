"""Programs that hold one kernel object each and verify themselves: left running, and restarted from an older image."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.daemon import BIN, eventually
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


def crd(*words: str | Path, home: Path) -> None:
    done = subprocess.run([BIN / "crd", *words], env={**os.environ, "CRD_ENGINE__CRID_FILE": str(home / "crid")},
                          capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def checkpoint(victim: Victim, image: Path) -> None:
    crd("checkpoint", str(victim.pid), "-o", image, home=image.parent)


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
        checkpoint(victim, tmp_path / "older.image")
        checkpoint(victim, tmp_path / "newer.image")
        for image in ("newer.image", "older.image"):
            victim.kill()
            crd("restart", "-i", tmp_path / image, home=tmp_path)
            victim.restarted_as(victim.pid)
            victim.assert_unharmed()
        victim.verify()


def test_a_stopped_task_stays_stopped(tmp_path: Path) -> None:
    with Victim("stopped", tmp_path) as victim:
        checkpoint(victim, tmp_path / "image")
        victim.kill()
        crd("restart", "-i", tmp_path / "image", home=tmp_path)
        victim.restarted_as(victim.pid)
        eventually("it to be stopped", lambda: victim.status()["State"].startswith("T"))
        os.kill(victim.pid, 18)
        victim.verify()
