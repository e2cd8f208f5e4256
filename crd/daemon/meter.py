"""How much the archive holds."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from crd.archive.archive import ArchiveSize
from crd.errors import CrdError

if TYPE_CHECKING:
    from crd.archive.archive import Archive
    from crd.archive.stores.spooled import SpooledStore
    from crd.metrics.names import Metrics

_INTERVAL_SECONDS = 30.0
_REST = 20
"""Times as long as measuring took is the pause after it, at least."""
_QUICK_SECONDS = 0.2
"""What somebody who asks may wait for."""


class Meter:
    """Measures the archive now and then: the more there is, the longer that takes, and the more seldom it is done.

    Attributes:
        size: as measured last, with the images that were taken since and without those that were forgotten; what these
            have freed is known when it is measured again.
        free_bytes: as of ``Archive.free_bytes``, at that time.
    """

    def __init__(self, archive: Archive, spool: SpooledStore | None, metrics: Metrics) -> None:
        """Measure an archive, and the spool before it, if there is one."""
        self._archive = archive
        self._spool = spool
        self._metrics = metrics
        self._store = archive.describe()
        self.size = ArchiveSize(0, 0)
        self.free_bytes: int | None = None
        self._took_seconds = 0.0
        self._is_outdated = True

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            with suppress(CrdError):
                await self.measure()
            await asyncio.sleep(max(_INTERVAL_SECONDS, _REST * self._took_seconds))

    async def current(self) -> ArchiveSize:
        """Return ``size``, measured again if something was forgotten since and it does not take long."""
        if self._is_outdated and self._took_seconds < _QUICK_SECONDS:
            with suppress(CrdError):
                await self.measure()
        return self.size

    async def measure(self) -> None:
        """Bring the figures, and the gauges, up to date.

        Raises:
            ArchiveUnavailable: it cannot be read.
        """
        began, self._is_outdated = time.monotonic(), False
        if self._spool:
            waiting = self._spool.waiting
            self._metrics.spool_bytes.labels(self._store).set(waiting.stored_bytes)
            self._metrics.spool_objects.labels(self._store).set(waiting.objects)
            self._metrics.archive_away.labels(self._store).set(bool(waiting.error))
        self.free_bytes = await self._archive.free_bytes()
        if self.free_bytes is not None:
            self._metrics.archive_free.labels(self._store).set(self.free_bytes)
        size = await self._archive.size()
        if self._spool and not self._archive.is_known:
            size = ArchiveSize(size.images, self._spool.waiting.stored_bytes)  # what only the store has, nobody knows
        self._enter(size)
        self._took_seconds = time.monotonic() - began

    def taken(self, stored_bytes: int) -> None:
        """Count an image that was taken just now."""
        self._enter(ArchiveSize(self.size.images + 1, self.size.stored_bytes + stored_bytes))

    def forgotten(self) -> None:
        """Count an image that was forgotten just now."""
        self._is_outdated = True
        self._enter(ArchiveSize(max(0, self.size.images - 1), self.size.stored_bytes))

    def swept(self) -> None:
        """Take note that what was forgotten before has been removed just now."""
        self._is_outdated = True

    def _enter(self, size: ArchiveSize) -> None:
        self.size = size
        self._metrics.archive_bytes.labels(self._store).set(size.stored_bytes)
        self._metrics.archive_images.labels(self._store).set(size.images)
