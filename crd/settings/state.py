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


_LOCK = "lock"
_OF_THE_DISK = "lost+found"
"""In the root of a file system of its own: mke2fs(8)."""


@contextmanager
def held_state(path: Path) -> Iterator[None]:
    """Make the directory, and hold it for this process alone.

    Raises:
        StateInUse: another daemon has it.
        SettingsError: it cannot be used.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_of_others(path):
            raise SettingsError(f"daemon.state_dir: {path} is open to others, and holds what is not crd's",
                                path=str(path), hint="Name a directory for crd alone: it is closed to all others.")
        path.chmod(0o700)
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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


def _is_of_others(path: Path) -> bool:
    """Whether a directory is in use for something else, as /tmp is; raises OSError."""
    names = {*os.listdir(path)} - {_OF_THE_DISK}
    return bool(names) and _LOCK not in names and bool(path.stat().st_mode & 0o077)
