"""Checkpoints as jobs: entered, counted, logged, whatever comes of them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from crd.daemon.turns import Turns
from crd.errors import Busy, CatalogError, CrdError, TargetUnsupported, unforeseen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from datetime import datetime

    from crd.catalog.catalog import Catalog
    from crd.catalog.rows import Image
    from crd.clock import Clock
    from crd.daemon.meter import Meter
    from crd.daemon.pipeline import Pipeline
    from crd.daemon.scheduler import ScheduledTarget
    from crd.daemon.targets import Whereabouts
    from crd.engine.api import CheckpointOptions
    from crd.metrics.names import Metrics
    from crd.metrics.target import TargetMetrics

logger = logging.getLogger(__name__)

_PENDING_MAX = 1000
_PENDING_MAX_OF_USER = 4


class Failure(NamedTuple):
    """What the last attempt of a target came to, and since when none has succeeded."""

    error: CrdError
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What an image is to be taken of, and who hears of it meanwhile.

    Attributes:
        pid, target: one of them.
        tags: of the image.
        began: is called when its turn has come.
        progress, kept: as of ``Pipeline.checkpoint``.
    """

    pid: int | None = None
    target: ScheduledTarget | None = None
    tags: tuple[str, ...] = ()
    began: Callable[[], object] = lambda: None
    progress: Callable[[int], None] | None = None
    kept: Callable[[Image], Awaitable[None]] | None = None


class Checkpoints:
    """Takes images, a bounded number at once.

    Attributes:
        failing: the targets whose last attempt failed or was refused.
    """

    def __init__(self, pipeline: Pipeline, catalog: Catalog, metrics: Metrics, clock: Clock, meter: Meter, workers: int,
                 taken: Callable[[str], object], whereabouts: Whereabouts) -> None:
        """Take images through a pipeline; ``taken`` is told of each target that has a new one."""
        self._whereabouts = whereabouts
        self._pipeline = pipeline
        self._catalog = catalog
        self._metrics = metrics
        self._clock = clock
        self._meter = meter
        self._turns, self._turns_of_users = Turns(workers), Turns(max(1, workers - 1))
        self._of_user: Counter[int] = Counter()
        self._taken = taken
        self.failing: dict[str | None, Failure] = {}
        self._running = 0

    def limit(self, workers: int) -> None:
        """Take so many images at once from now on; those under way go on."""
        self._turns.resize(workers)
        self._turns_of_users.resize(max(1, workers - 1))

    async def take(self, options: CheckpointOptions, order: Order) -> Image:
        """Take an image.

        Raises:
            CrdError: there is none.
        """
        async with self._admitted(options.only_uid, is_scheduled=order.target is not None):
            return await self._take(options, order)

    @asynccontextmanager
    async def _admitted(self, uid: int | None, *, is_scheduled: bool) -> AsyncIterator[None]:
        """Bound what waits for a worker; a user who is no administrator leaves one to the schedule if there are two.

        Raises:
            Busy: too many wait.
        """
        if not is_scheduled and self._running >= _PENDING_MAX:
            raise Busy(f"{self._running} checkpoints are under way", hint="Try again in a while.")
        if uid is None:
            yield
            return
        if self._of_user[uid] >= _PENDING_MAX_OF_USER:
            raise Busy(f"{self._of_user[uid]} checkpoints of yours are under way", hint="Wait for one of them.")
        self._of_user[uid] += 1
        try:
            async with self._turns_of_users:
                yield
        finally:
            self._of_user[uid] -= 1
            self._of_user += Counter()  # those that have any

    async def _take(self, options: CheckpointOptions, order: Order) -> Image:
        pid, name, number = order.pid, order.target.name if order.target else None, None
        self._count_running(1)
        try:
            number = await self._catalog.checkpoints.start(name, pid, self._clock.now())
            async with self._turns:
                order.began()
                if order.target is not None:
                    pid = (await asyncio.to_thread(self._whereabouts.find, order.target)).pid
                assert pid is not None  # noqa: S101
                image = await self._pipeline.checkpoint(pid, options, target=name, tags=order.tags,
                                                        progress=order.progress, kept=order.kept)
        except Exception as error:
            state = "refused" if isinstance(error, TargetUnsupported) else "failed"
            await self._ended(number, state, name, pid, error=error if isinstance(error, CrdError) else unforeseen())
            raise
        except asyncio.CancelledError:
            stopped = CrdError("the daemon was stopped meanwhile")
            await asyncio.shield(self._ended(number, "failed", name, pid, error=stopped))
            raise
        finally:
            self._count_running(-1)
        await self._ended(number, "ok", name, pid, image=image)
        if name is not None:
            self._taken(name)
        return image

    @property
    def running(self) -> int:
        """How many are under way or wait for a worker."""
        return self._running

    def _count_running(self, change: int) -> None:
        self._running += change
        self._metrics.running.set(self._running)

    async def take_due(self, target: ScheduledTarget, options: CheckpointOptions, late_seconds: float) -> None:
        """Take an image of a target that is due; an error is entered, counted and logged, not raised."""
        due = self._clock.monotonic() - max(0.0, late_seconds)
        self._due(target.name)
        try:
            await self.take(options, Order(target=target, began=lambda: self._metrics.schedule_lag.observe(
                self._clock.monotonic() - due)))
        except CrdError:
            pass
        except Exception:
            logger.exception("checkpoint of %s", target.name, extra={"event": "checkpoint.crashed"})

    async def skip(self, target: ScheduledTarget) -> None:
        """Enter a run that did not take place."""
        self._due(target.name)
        with self._metrics.of(target.name) as metrics:
            metrics.results["skipped"] += 1
        with suppress(CatalogError):  # the loop of the target goes on
            await self._catalog.checkpoints.skip(target.name, self._clock.now(), "the one before was still under way")

    def _due(self, name: str) -> None:
        """Note since when an image is due, unless one has been for longer."""
        with self._metrics.of(name) as metrics:
            metrics.due_since = metrics.due_since or self._clock.now().timestamp()

    async def _ended(self, number: int | None, state: str, name: str | None, pid: int | None, *,
                     image: Image | None = None, error: CrdError | None = None) -> None:
        """Count, log and enter how an attempt ended; what it came to does not depend on the entry."""
        if image:
            self.failing.pop(name, None)
        elif error and name is not None:
            before = self.failing.get(name)
            self.failing[name] = Failure(error, before.since if before else self._clock.now())
        with self._metrics.of(name) as metrics:
            metrics.results[state] += 1
            if error:
                metrics.failures[error.code] += 1
            if image:
                _count_image(metrics, image)
        if error:
            logger.warning("checkpoint %s: %s", state, error.message,
                           extra={"event": f"checkpoint.{state}", "target": name, "pid": pid, "error": error.code})
        if image:
            self._meter.taken(image.stored_bytes)
            logger.info("image taken", extra={"event": "checkpoint.ok", "target": name, "pid": pid,
                                              "crid": image.crid, "seconds": image.stop_seconds})
        try:
            if number is not None:
                await self._catalog.checkpoints.finish(number, state, self._clock.now(), error=error, pid=pid,
                                                       crid=image.crid if image else None)
        except CatalogError as failure:
            logger.warning("attempt %d is not entered: %s", number, failure.message,
                           extra={"event": "checkpoint.unentered", "target": name, "error": failure.code})


def _count_image(metrics: TargetMetrics, image: Image) -> None:
    metrics.stop_seconds.observe(image.stop_seconds)
    metrics.duration_seconds.observe(image.duration_seconds)
    metrics.memory_bytes += image.memory_bytes
    metrics.image_bytes += image.image_bytes
    metrics.stored_bytes += image.stored_bytes
    metrics.last_success = image.taken_at.timestamp()
    metrics.due_since = 0.0
