"""What tests with a real daemon begin with, where they ask for nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import RunningDaemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    """A daemon beside the files of the test."""
    home = tmp_path / "home"
    home.mkdir()
    with RunningDaemon(home) as running:
        yield running
