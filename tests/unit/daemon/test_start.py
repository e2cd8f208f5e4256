"""What the daemon loads when it starts, which those who start it wait for."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["alembic", "crd.engine.userspace.capture", "crd.image.verify"])
def test_what_not_every_daemon_needs_is_loaded_by_those_that_do(module: str) -> None:
    program = f"import crd.daemon.main, sys; sys.exit({module!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
