"""Which writes of which targets are noted, and since which image."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from crd.engine.client import HeldNotes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from crd.engine.client import ProcessKey
    from crd.ids import Crid

_REST = 10
"""Images of a target that wrote too much for notes to be of use, or had no room, before they are tried again."""


@dataclass(slots=True)
class Track:
    """Of one target.

    Attributes:
        fds: userfaultfds, by process.
        base: the image that they go back to; None: nobody knows.
        digest: of that image.
        inherited: they are from the daemon before us: the archive is to recall the base.
        rest: so many images are to be taken without.
    """

    fds: dict[ProcessKey, int] = field(default_factory=dict)
    base: Crid | None = None
    digest: str = ""
    inherited: bool = False
    rest: int = 0

    def notes(self, *, since: bool) -> HeldNotes | None:
        """Return what the engine is to keep up."""
        return None if self.rest else HeldNotes(self.fds, since)

    def follow(self, fds: dict[ProcessKey, int], base: Crid, digest: str) -> None:
        """Go on from an image that is durable now, with these descriptors, which are ours from here on."""
        useless = not fds and bool(self.fds)
        self.close()
        self.fds, self.base, self.digest, self.inherited = fds, base if fds else None, digest, False
        self.rest = _REST if useless else max(0, self.rest - 1)

    def close(self) -> None:
        """End the notes."""
        for fd in self.fds.values():
            os.close(fd)
        self.fds, self.base = {}, None


class Keeper(Protocol):
    """Has notes outlive the daemon (``crd.daemon.kept_notes``)."""

    def disown(self, target: str) -> None:
        """Forget which image the notes of a target go back to: they are about to be read, and begun anew."""

    def keep(self, target: str, track: Track) -> None:
        """Keep the notes of a target as they are now."""


class Tracks:
    """Of all targets, by name.  A context manager."""

    def __init__(self, keeper: Keeper | None = None, *, enabled: bool, fds_max: int = sys.maxsize) -> None:
        """Have no notes yet; never have any unless ``enabled``, and never more than ``fds_max`` descriptors of them."""
        self._keeper = keeper
        self.enabled = enabled
        self._fds_max = fds_max
        self._tracks: dict[str, Track] = {}
        self._lent: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._lent.clear()
        while self._tracks:
            self._tracks.popitem()[1].close()

    def inherit(self, tracks: dict[str, Track]) -> None:
        """Go on with notes of the daemon before us."""
        self._tracks |= tracks

    @contextmanager
    def of(self, target: str | None) -> Iterator[Track | None]:
        """Lend the notes of a target for one image.

        Unless that calls ``follow`` they lead back to no image any more: some were read and begun anew.
        """
        if target is None or not self.enabled:
            yield None
            return
        track = self._tracks.pop(target, None) or Track()
        base = track.base
        self._lent.add(target)
        if self._keeper:
            self._keeper.disown(target)
        try:
            yield track
        finally:
            if track.base == base:
                track.base = None
            if len(track.fds) + sum(len(other.fds) for other in self._tracks.values()) > self._fds_max:
                track.close()
                track.rest = _REST
            if target not in self._lent or target in self._tracks:  # it was dropped, or there was another one
                track.close()
            else:
                self._tracks[target] = track
                if self._keeper:
                    self._keeper.keep(target, track)
            self._lent.discard(target)

    def drop(self, target: str) -> None:
        """End the notes of a target."""
        self._lent.discard(target)
        if track := self._tracks.pop(target, None):
            track.close()
        if self._keeper:
            self._keeper.keep(target, Track())
