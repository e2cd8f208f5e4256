"""Room on the disk that is kept back: on a full one, what makes room again needs some itself."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

RESERVE_BYTES = 4 << 20
_PART_BYTES = 512 << 10
"""Many times what a transaction writes; and if others take it before us, as they write, too, there are more."""
_INTERVAL_SECONDS = 30.0


class Reserve:
    """A file of nothing, as large as there is room for.  Every method but ``run`` may block."""

    def __init__(self, path: Path) -> None:
        """Use a file; it keeps room back, also while no daemon runs, from the first ``take`` on."""
        self._path = path
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """How much is kept back."""
        try:
            return self._path.stat().st_size
        except OSError:
            return 0

    def begin(self) -> None:
        """Keep room back, and see that there is some beside it.

        SQLite maps a file that it makes when it opens a database, and whoever writes to a mapping gets SIGBUS if there
        is no room for the page: that is not to be left to chance.
        """
        self.take()
        probe = self._path.with_suffix(".probe")
        try:
            with probe.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, _PART_BYTES // 2)
        except OSError:
            self.give()
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)

    def take(self) -> None:
        """Keep back what is missing, as far as there is room."""
        if self.held_bytes >= RESERVE_BYTES:
            return
        with self._lock, suppress(OSError):  # there is no room
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                while (held := os.fstat(fd).st_size) < RESERVE_BYTES:
                    os.posix_fallocate(fd, held, min(_PART_BYTES, RESERVE_BYTES - held))
            finally:
                os.close(fd)

    def give(self) -> bool:
        """Give up a part; return False if there is none left."""
        with self._lock, suppress(OSError):
            fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if not (held := os.fstat(fd).st_size):
                    return False
                left = max(0, held - _PART_BYTES)
                os.ftruncate(fd, left)
                os.fsync(fd)  # only then may others use it, on file systems with a journal
            finally:
                os.close(fd)
            logger.warning("the disk is full: of what is kept back for that, %d KiB are left", left >> 10,
                           extra={"event": "disk.reserve"})
            return True
        return False

    async def run(self) -> None:
        """Take again what was given, as soon as there is room, until cancelled."""
        while True:
            await asyncio.to_thread(self.take)
            await asyncio.sleep(_INTERVAL_SECONDS)
