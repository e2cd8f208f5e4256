"""Notes of writes that outlive the daemon: systemd keeps their descriptors, and a file each says what those are.

The file of a target goes before its notes are lent for an image, and comes back when they lead to one that is durable:
whenever the daemon ends, notes that nobody can say anything of have no file, and are ended by the next one.  With the
machine all ends, and no file need be durable.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from crd.daemon.notify import keep, new_name
from crd.daemon.tracking import Track
from crd.ids import Crid

if TYPE_CHECKING:
    from collections.abc import Container, Mapping
    from pathlib import Path

    from crd.engine.client import ProcessKey

logger = logging.getLogger(__name__)

_KIND = "notes"


class _File(msgspec.Struct):
    """What is said of the notes of a target: the image that they go back to, and of which process each name is."""

    base: int
    digest: str
    names: dict[str, tuple[int, int]]


class KeptNotes:
    """The notes of all targets."""

    def __init__(self, directory: Path) -> None:
        """Have the files in a directory, which need not be there yet."""
        self._directory = directory
        self._names: dict[str, dict[ProcessKey, str]] = {}

    def take_over(self, passed: Mapping[str, int], targets: Container[str]) -> dict[str, Track]:
        """Return the notes that the daemon before us left of these targets, and end all others.

        Args:
            passed: descriptors that systemd has kept, by name; those of notes are ours from now on.
            targets: the targets that there are.
        """
        left = {name: fd for name, fd in passed.items() if name.startswith(_KIND)}
        found: dict[str, Track] = {}
        for path in self._directory.iterdir() if self._directory.is_dir() else ():
            with suppress(OSError, msgspec.MsgspecError):
                said = msgspec.json.decode(path.read_bytes(), type=_File)
                if path.name in targets and (there := said.names.keys() & left.keys()):
                    self._names[path.name] = {said.names[name]: name for name in there}
                    found[path.name] = Track({said.names[name]: left.pop(name) for name in there}, Crid(said.base),
                                             said.digest, inherited=True)
                    continue
            path.unlink()
        for name, fd in left.items():
            keep(name, None)
            os.close(fd)
        return found

    def disown(self, target: str) -> None:
        """Forget which image the notes of a target go back to."""
        try:
            (self._directory / target).unlink(missing_ok=True)
        except OSError as error:
            self._keep_only(target, {})
            logger.warning("%s: %s", error.filename, error.strerror, extra={"event": "notes.not-kept"})

    def keep(self, target: str, track: Track) -> None:
        """Keep the notes of a target as they are now."""
        self._keep_only(target, track.fds)
        if track.base is None:
            self.disown(target)
            return
        said = _File(track.base, track.digest, {name: key for key, name in self._names[target].items()})
        new = self._directory / ".new"
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            new.write_bytes(msgspec.json.encode(said))
            new.replace(self._directory / target)
        except OSError as error:
            logger.warning("%s: %s", error.filename, error.strerror, extra={"event": "notes.not-kept"})

    def _keep_only(self, target: str, fds: Mapping[ProcessKey, int]) -> None:
        """Have systemd keep these descriptors: what notes it has of a process are the same as long as it has some."""
        names = self._names.setdefault(target, {})
        for key in names.keys() - fds.keys():
            keep(names.pop(key), None)
        for key in fds.keys() - names.keys():
            names[key] = new_name(_KIND)
            keep(names[key], fds[key], polled=False)
        if not names:
            del self._names[target]
