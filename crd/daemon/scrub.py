"""Reads what is stored again and again: damage is found before somebody needs the image."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from crd.errors import ArchiveUnavailable, BlobCorrupt, BlobMissing, CrdError, ImageNotFound

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from crd.catalog.catalog import Catalog
    from crd.catalog.rows import Image
    from crd.clock import Clock
    from crd.daemon.pipeline import Pipeline
    from crd.daemon.readers import Readers
    from crd.ids import Crid
    from crd.metrics.names import Metrics
    from crd.settings.models import RetentionSettings

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 60.0
_IMAGES_AT_ONCE = 100
"""Rows that are held in memory."""
_FAILURES_MAX = 3
"""Images that cannot be read: then it is the store."""


@dataclass(slots=True)
class Scrubbed:
    """How far a scrub is; field names are those of ``io.crd.varlink``."""

    images: int
    checked: int = 0
    bytes: int = 0
    damaged: list[Crid] = field(default_factory=list)


class Scrub:
    """Checks stored images, one after the other.

    Each is checked once in ``scrub_every``; when it was is in the catalog, so a scrub goes on where the daemon before
    us ended.  After each image comes a pause that keeps the average below ``scrub_rate``.
    """

    def __init__(self, pipeline: Pipeline, metrics: Metrics, clock: Clock, readers: Readers,
                 settings: Callable[[], RetentionSettings]) -> None:
        """Check what a pipeline stored; ``settings`` is asked each time."""
        self._pipeline = pipeline
        self._catalog: Catalog = pipeline.catalog
        self._metrics = metrics
        self._clock = clock
        self._readers = readers
        self._settings = settings
        self._unread: set[Crid] = set()  # images that could not be read: after all others they have another try

    async def check(self, crid: Crid) -> Image:
        """Read all that is stored of an image, enter the result, and return the image.

        Raises:
            ImageNotFound: there is none.
            BlobCorrupt, BlobMissing: it is damaged.
            ArchiveUnavailable: it cannot be read just now.
        """
        image, _ = await self._check(crid)
        return image

    async def _check(self, crid: Crid) -> tuple[Image, int]:
        """Check an image, and return how many bytes were read of it, too."""
        with self._readers.reading(crid):
            try:
                source = await self._pipeline.verify(await self._catalog.images.get(crid))
            except (BlobCorrupt, BlobMissing) as error:
                self._metrics.scrub_errors.inc()
                logger.error("image %d is damaged: %s", crid, error.message,  # noqa: TRY400  not a fault of ours
                             extra={"event": "image.damaged", "crid": crid, "error": error.code})
                raise
            return await self._catalog.images.verified(crid, self._clock.now()), source.checked_bytes

    async def run(self) -> None:
        """Check what is due, until cancelled."""
        while True:
            try:
                busy = await self._next()
            except CrdError as error:
                logger.warning("scrub: %s", error.message, extra={"event": "scrub.failed", "error": error.code})
                busy = False
            if not busy:
                await self._clock.sleep(_IDLE_SECONDS)

    async def _next(self) -> bool:
        """Check the image that was not checked for longest, if it is due; return whether there was one."""
        every = self._settings().scrub_every
        if not every:
            return False
        image = await self._catalog.images.unchecked_since(self._clock.now() - timedelta(seconds=every), self._unread)
        if image is None:
            self._unread.clear()
            return False
        try:
            await self._check_slowly(image, Scrubbed(1))
        except ArchiveUnavailable:
            self._unread.add(image.crid)
            raise
        self._metrics.last_scrub.set(self._clock.now().timestamp())
        return True

    async def all(self, tell: Callable[[Scrubbed], Awaitable[None]]) -> Scrubbed:
        """Check every image now, the newest first.

        Args:
            tell: told after each image how far it is.

        Raises:
            ArchiveUnavailable: an image cannot be read just now, which is said when all others are checked, or the
                store as a whole.
        """
        so_far, below = Scrubbed(await self._catalog.images.count()), None
        failures: list[ArchiveUnavailable] = []
        while images := await self._catalog.images.own(below=below, limit=_IMAGES_AT_ONCE):
            for image in images:
                try:
                    await self._check_slowly(image, so_far)
                except ArchiveUnavailable as error:
                    failures.append(error)
                    if len(failures) == _FAILURES_MAX:
                        raise
                await tell(so_far)
            below = images[-1].crid
        if failures:
            raise failures[0]
        self._metrics.last_scrub.set(self._clock.now().timestamp())
        return so_far

    async def _check_slowly(self, image: Image, so_far: Scrubbed) -> None:
        began, read_bytes = time.monotonic(), image.stored_bytes
        try:
            _, read_bytes = await self._check(image.crid)
        except ImageNotFound:
            return  # forgotten meanwhile
        except (BlobCorrupt, BlobMissing):
            so_far.damaged.append(image.crid)
        so_far.checked += 1
        so_far.bytes += read_bytes
        pause = read_bytes / self._settings().scrub_rate - (time.monotonic() - began)
        await asyncio.sleep(max(0.0, pause))
