"""What the daemon loads when it starts, which those who start it wait for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from crd.daemon.app import App
from crd.errors import SettingsError
from crd.settings.models import Settings


@pytest.mark.parametrize("module", ["alembic", "crd.engine.userspace.capture", "crd.image.verify"])
def test_what_not_every_daemon_needs_is_loaded_by_those_that_do(module: str) -> None:
    program = f"import crd.daemon.main, sys; sys.exit({module!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


async def test_settings_are_not_read_again_before_the_first_ones_count() -> None:
    app = App(Settings(), Path("/nothing/crd.toml"))
    reloading = asyncio.create_task(app.reload())
    await asyncio.sleep(0)
    assert not reloading.done()
    app.ready.set()
    with pytest.raises(SettingsError):
        await reloading
