"""What outlives a power cut: a file is flushed, and then the directory that names it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def flush_directory(directory: Path) -> None:
    """Make the names in a directory durable, as they are now (fsync(2)); raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
