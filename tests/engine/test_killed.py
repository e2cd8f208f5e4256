"""Checkpoints that are killed at every step: the target runs on unharmed, and nobody is left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.programs import COUNTS_SIGNALS, compiled
from tests.support.victims import until

pytestmark = pytest.mark.root

TIMEOUT_SECONDS = 100

def kill_checkpoints(pid: int, directory: Path, method: str, kills: int) -> dict[str, int]:
    killer = subprocess.run([sys.executable, "-m", "tests.engine.killer", str(pid), directory, method, str(kills), "7"],
                            capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    assert (killer.returncode, killer.stderr) == (0, "")
    done: dict[str, int] = json.loads(killer.stdout)
    assert done["images"] >= 2
    assert done["failed"] == 0, "a checkpoint failed by itself"
    return done


def copies_of(program: Path) -> list[int]:
    """Return who executes the program: itself, and a snapshot child that was left behind."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "exe").readlink() == program:
                found.append(int(entry.name))
        except OSError:  # it has ended
            continue
    return found


def counts(directory: Path) -> list[int]:
    """Return how many signals the program has handled, and how much each of its threads has done."""
    return [int(word) for word in (directory / "counts").read_text().split()]


@pytest.mark.parametrize(("method", "kills"), [("snapshot", 120), ("copy", 40)])
def test_the_target_is_unharmed_and_nobody_is_left(tmp_path: Path, method: str, kills: int) -> None:
    with compiled(tmp_path, COUNTS_SIGNALS) as program:
        maps = Path(f"/proc/{program.pid}/maps").read_text()
        done = kill_checkpoints(program.pid, tmp_path, method, kills)
        until("every signal to be handled", lambda: counts(tmp_path)[0] >= done["sent"])
        before = counts(tmp_path)
        until("all threads to work on", lambda: all(map(int.__lt__, before[1:], counts(tmp_path)[1:])))
        assert counts(tmp_path)[0] == done["sent"]
        program.assert_unharmed()
        assert Path(f"/proc/{program.pid}/maps").read_text() == maps
        until("the end of all snapshots", lambda: copies_of(tmp_path / "program") == [program.pid])
        assert not Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text()
