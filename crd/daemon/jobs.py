"""Checkpoints and restarts as jobs: entered, counted, logged, whatever comes of them."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from crd.daemon.targets import resolve
from crd.engine.api import CheckpointOptions, Files, Pids, RestartOptions
from crd.errors import CrdError, TargetUnsupported
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Callable

    from crd.archive.archive import Archive
    from crd.archive.stores.spooled import SpooledStore
    from crd.catalog.catalog import Catalog
    from crd.catalog.rows import Image, Request
    from crd.clock import Clock
    from crd.daemon.pipeline import Pipeline
    from crd.daemon.scheduler import ScheduledTarget
    from crd.engine.api import RestartResult
    from crd.metrics.names import Metrics

logger = logging.getLogger(__name__)

ENGINE = "userspace"
_NO_TARGET = ""
_IDLE_SECONDS = 5.0
_SETTLE_SECONDS = 10.0


class Checkpoints:
    """Takes images, a bounded number at once."""

    def __init__(self, pipeline: Pipeline, catalog: Catalog, metrics: Metrics, clock: Clock, workers: int,
                 taken: Callable[[str], object]) -> None:
        """Take images through a pipeline; ``taken`` is told of each target that has a new one."""
        self._pipeline = pipeline
        self._catalog = catalog
        self._metrics = metrics
        self._clock = clock
        self._store = pipeline.archive.describe()
        self._free = asyncio.Semaphore(workers)
        self._taken = taken
        self.running = 0

    async def take(self, options: CheckpointOptions, *, pid: int | None = None, target: ScheduledTarget | None = None,
                   tags: tuple[str, ...] = (), progress: Callable[[int], None] | None = None) -> Image:
        """Take an image of a process or of a target.

        Raises:
            CrdError: there is none.
        """
        name = target.name if target else None
        number = await self._catalog.checkpoints.start(name, pid, self._clock.now())
        self.running += 1
        try:
            async with self._free:
                if target is not None:
                    pid = resolve(target.settings).pid
                assert pid is not None  # noqa: S101
                image = await self._pipeline.checkpoint(pid, options, target=name, tags=tags, progress=progress)
        except CrdError as error:
            state = "refused" if isinstance(error, TargetUnsupported) else "failed"
            await self._ended(number, state, name, pid, error=error)
            raise
        except asyncio.CancelledError:
            stopped = CrdError("the daemon was stopped meanwhile")
            await asyncio.shield(self._ended(number, "failed", name, pid, error=stopped))
            raise
        finally:
            self.running -= 1
        await self._ended(number, "ok", name, pid, image=image)
        if name is not None:
            self._taken(name)
        return image

    async def take_due(self, target: ScheduledTarget, options: CheckpointOptions, late_seconds: float) -> None:
        """Take an image of a target that is due; an error is entered, counted and logged, not raised."""
        self._metrics.schedule_lag.observe(max(0.0, late_seconds))
        try:
            await self.take(options, target=target)
        except CrdError:
            pass
        except Exception:
            logger.exception("checkpoint of %s", target.name, extra={"event": "checkpoint.crashed"})

    async def skip(self, target: ScheduledTarget) -> None:
        """Enter a run that did not take place."""
        await self._catalog.checkpoints.skip(target.name, self._clock.now(), "the one before was still under way")
        self._metrics.checkpoints.labels(target.name, ENGINE, "skipped").inc()

    async def _ended(self, number: int, state: str, name: str | None, pid: int | None, *, image: Image | None = None,
                     error: CrdError | None = None) -> None:
        await self._catalog.checkpoints.finish(number, state, self._clock.now(), crid=image.crid if image else None,
                                               error=error, pid=pid)
        label = name or _NO_TARGET
        metrics = self._metrics
        metrics.checkpoints.labels(label, ENGINE, state).inc()
        if error:
            metrics.failures.labels(label, error.code).inc()
            logger.warning("checkpoint %s: %s", state, error.message,
                           extra={"event": f"checkpoint.{state}", "target": name, "pid": pid, "error": error.code})
        if image:
            metrics.stop_seconds.labels(label).observe(image.stop_seconds)
            metrics.duration_seconds.labels(label).observe(image.duration_seconds)
            metrics.memory_bytes.labels(label).inc(image.memory_bytes)
            metrics.image_bytes.labels(label).inc(image.image_bytes)
            metrics.stored_bytes.labels(label).inc(image.stored_bytes)
            metrics.last_success.labels(label).set(image.taken_at.timestamp())
            metrics.archive_bytes.labels(self._store).inc(image.stored_bytes)  # until it is measured again
            metrics.archive_images.labels(self._store).inc()
            logger.info("image taken", extra={"event": "checkpoint.ok", "target": name, "pid": pid,
                                              "crid": image.crid, "seconds": image.stop_seconds})


class Restarts:
    """Carries out queued requests, one after the other."""

    def __init__(self, pipeline: Pipeline, catalog: Catalog, metrics: Metrics, clock: Clock) -> None:
        """Restart through a pipeline."""
        self._pipeline = pipeline
        self._catalog = catalog
        self._metrics = metrics
        self._clock = clock
        self._asked = asyncio.Event()
        self.changed = asyncio.Condition()
        self.boot_id = procfs.read("sys", "kernel/random/boot_id").strip()

    def wake(self) -> None:
        """Say that there is a new request."""
        self._asked.set()

    async def recover(self) -> None:
        """Settle what a daemon before us left under way."""
        await self._catalog.requests.recover(self._clock.now(), self.boot_id, _runs)

    async def run(self) -> None:
        """Carry out requests until cancelled; a request under way is finished first."""
        while True:
            self._asked.clear()
            while request := await self._catalog.requests.claim(self._clock.now()):
                await self._tell()
                await asyncio.shield(self._carry_out(request))
            try:
                async with asyncio.timeout(_IDLE_SECONDS):
                    await self._asked.wait()
            except TimeoutError:
                pass

    async def _carry_out(self, request: Request) -> None:
        made: list[RestartResult] = []

        async def note(result: RestartResult) -> None:
            await self._catalog.requests.releasing(request.number, result.root_pid, result.start_time, self.boot_id)
            made.append(result)

        options = RestartOptions(pids=Pids(request.pids), files=Files(request.files))
        try:
            await self._pipeline.restart(request.crid, options, note)
        except CrdError as error:
            if made and _runs(made[0].root_pid, made[0].start_time):
                await self._done(request, made[0])  # the worker died after the last step
            else:
                await self._failed(request, error)
        except Exception:
            logger.exception("restart", extra={"event": "restart.crashed", "request": request.number})
            await self._failed(request, CrdError("the daemon failed; its log says why"))
        else:
            await self._done(request, made[0])
        await self._tell()

    async def _done(self, request: Request, result: RestartResult) -> None:
        await self._catalog.requests.done(request.number, self._clock.now())
        self._metrics.requests.labels("done").inc()
        self._metrics.restart_seconds.observe(result.duration_seconds)
        logger.info("restarted", extra={"event": "restart.done", "request": request.number, "crid": request.crid,
                                        "pid": result.root_pid})

    async def _failed(self, request: Request, error: CrdError) -> None:
        await self._catalog.requests.failed(request.number, self._clock.now(), error)
        self._metrics.requests.labels("failed").inc()
        logger.warning("restart failed: %s", error.message,
                       extra={"event": "restart.failed", "request": request.number, "crid": request.crid,
                              "error": error.code})

    async def _tell(self) -> None:
        """Bring the gauges up to date and wake who waits for a request."""
        queued, running, oldest = await self._catalog.requests.queue()
        self._metrics.queue_length.set(queued + running)
        self._metrics.oldest_request.set(oldest.timestamp() if oldest else 0)
        async with self.changed:
            self.changed.notify_all()

    async def heard(self) -> None:
        """Take note that requests may have been made or changed elsewhere."""
        self.wake()
        await self._tell()

    async def cancelled(self) -> None:
        """Count a request that was cancelled."""
        self._metrics.requests.labels("cancelled").inc()
        await self._tell()


async def measure(archive: Archive, spool: SpooledStore | None, metrics: Metrics) -> None:
    """Bring the archive's gauges up to date."""
    if spool:
        waiting = spool.waiting
        metrics.spool_bytes.labels(archive.describe()).set(waiting.stored_bytes)
        metrics.spool_objects.labels(archive.describe()).set(waiting.objects)
        metrics.archive_away.labels(archive.describe()).set(bool(waiting.error))
    size = await archive.size()
    metrics.archive_bytes.labels(archive.describe()).set(size.stored_bytes)
    metrics.archive_images.labels(archive.describe()).set(size.images)


def _runs(pid: int, start_time: int) -> bool:
    """Whether a task runs, on its own; one that is still traced is about to be let go or to die with its tracer."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    try:
        while (stat := procfs.stat(pid)).start_time == start_time and stat.state not in "ZX":
            if procfs.status(pid)["TracerPid"] == "0":
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
    except CrdError:
        pass
    return False
