"""What the daemon loads when it starts, which those who start it wait for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from crd.daemon.app import App
from crd.errors import SettingsError
from crd.settings.models import Settings
from crd.settings.state import held_state


@pytest.mark.parametrize("module", ["alembic", "crd.engine.userspace.capture", "crd.image.verify"])
def test_what_not_every_daemon_needs_is_loaded_by_those_that_do(module: str) -> None:
    program = f"import crd.daemon.main, sys; sys.exit({module!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_directory_that_is_in_use_for_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    (tmp_path / "of others").touch()
    with pytest.raises(SettingsError, match="open to others") as refused, held_state(tmp_path):
        pass
    assert "alone" in refused.value.hint
    assert tmp_path.stat().st_mode & 0o7777 == 0o1777
    assert [path.name for path in tmp_path.iterdir()] == ["of others"]


@pytest.mark.parametrize("there", [(), ("lock", "catalog.db"), ("lost+found",)])
def test_the_state_directory_is_closed_to_others(tmp_path: Path, there: tuple[str, ...]) -> None:
    state = tmp_path / "state"
    state.mkdir()
    for name in there:
        (state / name).touch()
    state.chmod(0o755)
    with held_state(state):
        assert state.stat().st_mode & 0o777 == 0o700


async def test_settings_are_not_read_again_before_the_first_ones_count() -> None:
    app = App(Settings(), Path("/nothing/crd.toml"))
    app.scheduler = SimpleNamespace(changing=asyncio.Lock())
    reloading = asyncio.create_task(app.reload())
    await asyncio.sleep(0)
    assert not reloading.done()
    app.ready.set()
    with pytest.raises(SettingsError):
        await reloading
