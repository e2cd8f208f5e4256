"""A terminal that controls a session, with jobs in the foreground and in the background."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.test_file_contents import checkpoint, restart
from tests.support.victims import Victim

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


def test_left_running(tmp_path: Path) -> None:
    with Victim("jobs", tmp_path) as victim:
        for number in range(3):
            checkpoint(victim, tmp_path / f"{number}.image")
            victim.assert_unharmed()
        victim.verify()


@pytest.mark.parametrize("words", [(), ("--pidns",)], ids=["", "pidns"])
def test_killed_and_the_older_image_restarted(words: tuple[str, ...], tmp_path: Path) -> None:
    with Victim("jobs", tmp_path) as victim:
        checkpoint(victim, tmp_path / "older.image")
        checkpoint(victim, tmp_path / "newer.image")
        for image in ("newer.image", "older.image"):
            victim.kill_tree()
            done = restart(victim, tmp_path / image, *words)
            assert done.returncode == 0, done.stderr
            victim.restarted_as(int(done.stdout))
            victim.assert_unharmed()
        victim.verify()
