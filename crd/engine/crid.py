"""The counter that crids come from: one a host, so that a crid is never given twice."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from crd.durable import flush_directory
from crd.errors import EngineError
from crd.ids import CRID_MAX, Crid

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_PATH = Path("/var/lib/crd/crid")


class CridCounter:
    """A file that holds the last crid given out.

    Every number is durable before it is returned: it is written beside the file, synchronised and renamed, under a lock
    that all of the host's crd processes take.
    """

    def __init__(self, path: Path = DEFAULT_PATH) -> None:
        """Use the counter at ``path``; it is made when first needed."""
        self.path = path

    def next(self) -> Crid:
        """Give out the next crid.

        Raises:
            EngineError: the counter cannot be read or written, or holds rubbish.
        """
        with self._locked() as last:
            self._store(last + 1)
            return Crid(last + 1)

    def raise_to(self, crid: int) -> None:
        """Make sure that crids up to ``crid`` are not given out again: the catalog knows images up to there."""
        with self._locked() as last:
            if last < crid:
                self._store(crid)

    def check(self) -> None:
        """Raise the error that ``next`` would meet, before a checkpoint is taken for nothing."""
        with self._locked():
            pass

    @contextmanager
    def _locked(self) -> Iterator[int]:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield self._load()
            finally:
                os.close(lock)
        except OSError as error:
            raise EngineError(f"the crid counter {self.path}: {error.strerror}", path=str(self.path),
                              hint="Make it writable, or set engine.crid_file (CRD_ENGINE__CRID_FILE).") from error

    def _load(self) -> int:
        try:
            with self.path.open("rb") as file:
                text = file.read(32).strip()
        except FileNotFoundError:
            return 0
        if not (text.isdigit() and len(text) < 20 and int(text) < CRID_MAX):
            raise EngineError(f"the crid counter {self.path} holds {text!r}, which is no crid", path=str(self.path),
                              hint="Write the largest crid ever given out into it (crctl images shows them).")
        return int(text)

    def _store(self, crid: int) -> None:
        beside = self.path.with_name(self.path.name + ".new")
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, b"%d\n" % crid)
            os.fsync(fd)
        finally:
            os.close(fd)
        beside.rename(self.path)
        flush_directory(self.path.parent)
