"""Applies the rules: what is to be forgotten, and forgetting it."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from crd.archive.names import numbered
from crd.errors import CrdError, ImageInUse
from crd.retention.policy import decide
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from crd.archive.archive import Archive
    from crd.catalog.catalog import Catalog
    from crd.catalog.rows import Choice
    from crd.clock import Clock
    from crd.daemon.meter import Meter
    from crd.daemon.readers import Readers
    from crd.daemon.scheduler import ScheduledTarget
    from crd.ids import Crid
    from crd.retention.policy import Decision
    from crd.settings.keep import Keep
    from crd.settings.models import RetentionSettings

logger = logging.getLogger(__name__)

WANTED = "a restart of it is asked for"
READ = "it is being read"
_SWEEP_SECONDS = 3600.0


class Verdict(NamedTuple):
    """What becomes, or became, of an image; field names are those of ``io.crd.varlink``.

    Attributes:
        error: why it is still there although it was to be forgotten.
    """

    crid: Crid
    target: str | None
    taken_at: datetime
    stored_bytes: int
    keep: bool
    reasons: tuple[str, ...]
    error: str | None = None


class Swept(NamedTuple):
    """What a sweep has removed; field names are those of ``io.crd.varlink``.

    Attributes:
        images: that had been forgotten and could not be removed then.
        packs: that no image needed any more.
        bytes: of all these.
        requests: that had ended long ago.
        hindrance: why packs had to stay, if there was a reason.
    """

    images: int
    packs: int
    bytes: int
    requests: int
    hindrance: str


class Retention:
    """Forgets images: those that no rule wants, and those that somebody names.

    First the catalog counts the image no more, then its object goes, then its row: after a crash at any point
    ``Images.settle`` ends what was begun.
    """

    def __init__(self, catalog: Catalog, archive: Archive, clock: Clock, readers: Readers, meter: Meter,
                 settings: Callable[[], RetentionSettings], targets: Mapping[str, ScheduledTarget]) -> None:
        """Work by the settings of the moment.

        Args:
            catalog: of the images.
            archive: of their objects.
            clock: to go by.
            readers: of images.
            meter: is told of what goes.
            settings: asked each time.
            targets: those there are: images of others are nobody's to forget but by name.
        """
        self._catalog = catalog
        self._archive = archive
        self._clock = clock
        self._readers = readers
        self._meter = meter
        self._settings = settings
        self._targets = targets
        self._applying = asyncio.Lock()
        self._sweeping = asyncio.Lock()

    async def verdicts(self, target: str) -> list[Verdict]:
        """Return what the rules mean for each image of a target, the newest first."""
        return [self._verdict(target, choice, decision) for choice, decision in await self._decided(target)]

    async def verdict(self, target: str, crid: Crid) -> Verdict | None:
        """Return what the rules mean for an image of a target, None if there is none."""
        return next((self._verdict(target, choice, decision) for choice, decision in await self._decided(target)
                     if choice.crid == crid), None)

    async def _decided(self, target: str) -> list[tuple[Choice, Decision]]:
        settings, keep = self._settings(), self._keep(target)
        choices = {choice.crid: choice for choice in await self._catalog.images.choices(target)}
        decided = await asyncio.to_thread(  # there may be very many
            decide, choices.values(), keep, min_images=settings.min_images, now=self._clock.now(), zone=None)
        return [(choices[decision.crid], decision) for decision in decided]  # type: ignore[index]  # a Crid is an int

    def _verdict(self, target: str, choice: Choice, decision: Decision) -> Verdict:
        busy = self._busy(choice)
        return Verdict(choice.crid, target, choice.taken_at, choice.stored_bytes, keep=decision.keep or bool(busy),
                       reasons=(decision.reasons if decision.keep else ()) + busy or decision.reasons)

    def _keep(self, target: str) -> Keep:
        own = self._targets[target].settings.keep
        return self._settings().keep if own is None else own

    def _busy(self, choice: Choice) -> tuple[str, ...]:
        return ((WANTED,) if choice.wanted else ()) + ((READ,) if choice.crid in self._readers else ())

    async def apply(self, target: str) -> list[Verdict]:
        """Forget what no rule of a target wants, the oldest first; return what became of each image."""
        async with self._applying:
            if target not in self._targets:
                return []
            verdicts = await self.verdicts(target)
            done = [verdict if verdict.keep else await self.carry_out(verdict) for verdict in reversed(verdicts)]
        return done[::-1]

    async def carry_out(self, verdict: Verdict) -> Verdict:
        """Forget the image of a verdict; return the verdict, with what went wrong if something did."""
        try:
            await self.forget(verdict.crid)
        except CrdError as error:
            logger.warning("image %d stays: %s", verdict.crid, error.message,
                           extra={"event": "retention.failed", "crid": verdict.crid, "error": error.code})
            return verdict._replace(error=error.message)
        return verdict

    async def apply_all(self) -> None:
        """Apply the rules of every target; what fails is logged, and tried again the next time."""
        for target in list(self._targets):
            await self.apply_quietly(target)

    async def apply_quietly(self, target: str) -> None:
        """Apply the rules of a target; what fails is logged."""
        if target not in self._targets or self._keep(target).everything:
            return
        try:
            await self.apply(target)
        except CrdError as error:
            logger.warning("retention of %s: %s", target, error.message,
                           extra={"event": "retention.failed", "target": target, "error": error.code})
        except Exception:
            logger.exception("retention of %s", target, extra={"event": "retention.crashed", "target": target})

    async def forget(self, crid: Crid) -> None:
        """Forget an image; when this returns, it and what only it had stored are gone.

        Raises:
            ImageNotFound: there is none.
            ImageInUse: it is pinned, being read, or a restart of it is asked for.
            ArchiveUnavailable: its object cannot be removed now: ``sweep`` does.
        """
        if crid in self._readers:
            raise ImageInUse(f"image {crid} is being read", crid=crid, hint="Try again in a while.")
        await self._catalog.images.forget(crid)
        await self._remove(crid)
        self._meter.forgotten()
        logger.info("image forgotten", extra={"event": "image.forgotten", "crid": crid})

    async def _remove(self, crid: Crid) -> list[str]:
        """Remove what is left of an image that counts no more; return as ``Archive.forget``."""
        await self._readers.gone(crid)
        keys = await self._archive.forget(crid)
        await self._catalog.images.bury(crid)
        return keys

    async def run(self) -> None:
        """Sweep now and then, until cancelled."""
        while True:
            try:
                await self.sweep()
            except CrdError as error:
                logger.warning("old requests, or what is left of forgotten images, stay: %s", error.message,
                               extra={"event": "retention.failed", "error": error.code})
            await self._clock.sleep(_SWEEP_SECONDS)

    async def sweep(self) -> Swept:
        """Drop restart requests that ended long ago; remove what nobody needs and could not be removed before.

        An image that is still read is left to who forgets it, and waits for that.

        Raises:
            CatalogError, ArchiveUnavailable: it cannot be done now.
        """
        async with self._sweeping:
            dropped = await self._prune()
            forgotten = await self._catalog.images.forgotten()
            there, keys = {}, set()
            if forgotten or await self._archive.may_sweep():
                there = await self._archive.objects()
                for crid in forgotten:
                    if crid not in self._readers:
                        keys.update(await self._remove(crid))
                keys.update(await self._archive.sweep())
            gone = {key: there[key] for key in keys if key in there}
            swept = Swept(len(numbered(gone, "image")), len(numbered(gone, "pack")), sum(gone.values()), dropped,
                          self._archive.hindrance)
        if gone or dropped:
            self._meter.swept()
            logger.info("swept: %d images, %d packs, %d bytes, %d requests", *swept[:4],
                        extra={"event": "retention.swept"})
        return swept

    async def _prune(self) -> int:
        """Drop restart requests that ended too long ago; return how many."""
        if not (kept := self._settings().requests_for):
            return 0
        return await self._catalog.requests.prune(self._clock.now() - timedelta(seconds=kept), procfs.boot_id())
