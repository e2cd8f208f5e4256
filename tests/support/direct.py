"""``crd checkpoint`` and ``crd restart`` of victims, as somebody would type them."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from tests.support.daemon import BIN

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.victims import Program, Victim


def crd(*words: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a command, with a counter of crids of its own."""
    return subprocess.run([BIN / "crd", *words], env={**os.environ, "CRD_ENGINE__CRID_FILE": str(home / "crid")},
                          capture_output=True, text=True, check=False, timeout=60)


def checkpoint(program: Program, image: Path, *words: str) -> None:
    """Have an image written to a file."""
    done = crd("checkpoint", str(program.pid), "-o", image, *words, home=image.parent)
    assert done.returncode == 0, done.stderr


def restart(image: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Have the image in a file restarted, whatever comes of it."""
    return crd("restart", "-i", image, *words, home=image.parent)


def killed_and_restarted_from_both(victim: Victim, directory: Path, *words: str) -> None:
    """Take two images; kill all its processes and restart the newer one, and then the older one."""
    checkpoint(victim, directory / "older.image")
    checkpoint(victim, directory / "newer.image")
    for image in ("newer.image", "older.image"):
        victim.kill_tree()
        done = restart(directory / image, *words)
        assert done.returncode == 0, done.stderr
        victim.restarted_as(int(done.stdout))
        victim.assert_unharmed()
