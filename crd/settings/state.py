"""The state directory: one daemon at a time works on it."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crd.errors import SettingsError, StateInUse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def held_state(path: Path) -> Iterator[None]:
    """Make the directory, and hold it for this process alone.

    Raises:
        StateInUse: another daemon has it.
        SettingsError: it cannot be used.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SettingsError(f"daemon.state_dir: {path}: {error.strerror}", path=str(path),
                            hint="Run crd as root, or choose another directory.") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateInUse(f"another daemon works on {path}", path=str(path),
                             hint="Stop it, or set daemon.state_dir.") from error
        yield
    finally:
        os.close(lock)
