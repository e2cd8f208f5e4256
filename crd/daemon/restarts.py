"""Restarts as jobs: carried out exactly once, entered, counted, logged, whatever comes of them."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from crd.daemon.scopes import Scope
from crd.engine.api import UNRESTORED, Files, Pids, RestartOptions, Stdio, Tcp
from crd.errors import CatalogError, CrdError, PidInUse, RequestMoved, unforeseen
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from datetime import datetime
    from typing import Any

    from crd.catalog.catalog import Catalog
    from crd.catalog.rows import Request
    from crd.clock import Clock
    from crd.daemon.pipeline import Pipeline
    from crd.engine.api import RestartResult
    from crd.metrics.names import Metrics

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 5.0
_AGAIN_SECONDS = 1.0
_SETTLE_SECONDS = 10.0


class Restarts:
    """Carries out queued requests, one after the other.

    Attributes:
        changed: set, and replaced by another, whenever requests may have changed.
        boot_id: of the running kernel.
    """

    def __init__(self, pipeline: Pipeline, catalog: Catalog, metrics: Metrics, clock: Clock,
                 start: Callable[[Coroutine[Any, Any, bool]], asyncio.Task[bool]], serve: Callable[[int], None],
                 need_absence: Callable[[str], None], restarted: Callable[[str, int, int], None]) -> None:
        """Restart through a pipeline.

        Args:
            pipeline: which images flow through.
            catalog: which has the requests.
            metrics: which count them.
            clock: which times them.
            start: runs what a stop of the daemon waits for.
            serve: as of ``Pipeline.restart``.
            need_absence: raises if a target, whose name is given, runs; it may block.
            restarted: is told the name of a target, and as which process it runs now (pid and start time).
        """
        self._start = start
        self._need_absence = need_absence
        self._restarted = restarted
        self._serve = serve
        self._pipeline = pipeline
        self._catalog = catalog
        self._metrics = metrics
        self._clock = clock
        self._asked = asyncio.Event()
        self.changed = asyncio.Event()
        self._oldest: datetime | None = None
        self.boot_id = procfs.boot_id()

    def wake(self) -> None:
        """Say that there is a new request."""
        self._asked.set()
        self._metrics.queue_length.inc()  # until it is measured again
        if self._oldest is None:
            self._note_oldest(self._clock.now())

    async def recover(self) -> None:
        """Settle, and count, what a daemon before us left under way."""
        for state in await self._catalog.requests.recover(self._clock.now(), self.boot_id, _runs):
            self._metrics.requests.labels(state).inc()
        for target, (pid, start_time) in (await self._catalog.requests.roots(self.boot_id)).items():
            self._restarted(target, pid, start_time)
        await self.measure()

    async def run(self) -> None:
        """Carry out requests until cancelled; one under way goes on."""
        while True:
            self._asked.clear()
            try:
                while await asyncio.shield(self._start(self._next())):
                    pass
            except CatalogError as error:  # whatever is queued stays queued
                logger.warning("the queue: %s", error.message, extra={"event": "queue.failed", "error": error.code})
            try:
                async with asyncio.timeout(_IDLE_SECONDS):
                    await self._asked.wait()
            except TimeoutError:
                pass

    async def _next(self) -> bool:
        """Carry out the request that has waited for longest; return whether there was one."""
        request = await self._catalog.requests.claim(self._clock.now(), self.boot_id)
        if request:
            await self._tell()
            await self._carry_out(request)
        return request is not None

    async def _carry_out(self, request: Request) -> None:
        made: list[RestartResult] = []
        target: str | None = None

        async def note(result: RestartResult) -> None:
            await self._catalog.requests.releasing(request.number, result.root_pid, result.start_time, self.boot_id)
            made.append(result)

        try:
            target = (await self._catalog.images.get(request.crid)).target
            if request.boot_id and target:
                await asyncio.to_thread(self._need_absence, target)
            await self._restart(request, note)
        except CrdError as error:
            runs = bool(made) and await asyncio.to_thread(_runs, made[0].root_pid, made[0].start_time)
            if runs:
                await self._done(request, made[0], target)  # the worker died after the last step
            else:
                await self._failed(request, error)
        except Exception:
            logger.exception("restart", extra={"event": "restart.crashed", "request": request.number})
            await self._failed(request, unforeseen())
        else:
            await self._done(request, made[0], target)
        await self._tell()

    async def _restart(self, request: Request, note: Callable[[RestartResult], Awaitable[None]]) -> None:
        options = RestartOptions(files=Files(request.files), tcp=Tcp(request.tcp), served=True,
                                 stdio=Stdio(request.stdio), force_version=request.force_version,
                                 only_uid=None if request.gids is None else request.uid,
                                 only_gids=tuple(request.gids or ()))
        scope = Scope(f"crd-{request.crid}-{request.number}.scope", f"Restarted by crd from image {request.crid}")
        first, *others = pids_tried(request.pids)
        try:
            await self._pipeline.restart(request.crid, replace(options, pids=first), note, self._serve, scope)
        except PidInUse:
            if not others:
                raise
            await self._pipeline.restart(request.crid, replace(options, pids=others[0]), note, self._serve, scope)

    async def _done(self, request: Request, result: RestartResult, target: str | None) -> None:
        await self._entered(lambda: self._catalog.requests.done(request.number, self._clock.now()))
        self._metrics.requests.labels("done").inc()
        self._metrics.restart_seconds.observe(result.duration_seconds)
        if target:
            self._restarted(target, result.root_pid, result.start_time)
        logger.info("restarted", extra={"event": "restart.done", "request": request.number, "crid": request.crid,
                                        "pid": result.root_pid})

    async def _failed(self, request: Request, error: CrdError) -> None:
        await self._entered(lambda: self._catalog.requests.failed(request.number, self._clock.now(), error))
        self._metrics.requests.labels("failed").inc()
        logger.warning("restart failed: %s", error.message,
                       extra={"event": "restart.failed", "request": request.number, "crid": request.crid,
                              "error": error.code})

    async def _entered(self, enter: Callable[[], Awaitable[None]]) -> None:
        """Enter how a request ended, as often as it takes: until then it counts as running, and is never run again."""
        while True:
            try:
                return await enter()
            except RequestMoved:
                return None  # an attempt that seemed to fail did not
            except CatalogError as error:
                logger.warning("a restart is not entered yet: %s", error.message,
                               extra={"event": "queue.failed", "error": error.code})
            await self._clock.sleep(_IDLE_SECONDS)

    async def measure(self) -> None:
        """Bring the gauges up to date."""
        queued, running, oldest = await self._catalog.requests.queue()
        self._metrics.queue_length.set(queued + running)
        self._note_oldest(oldest)

    def _note_oldest(self, oldest: datetime | None) -> None:
        self._oldest = oldest
        self._metrics.oldest_request.set(oldest.timestamp() if oldest else 0)

    async def _tell(self) -> None:
        """Bring the gauges up to date and wake who waits for a request."""
        with suppress(CatalogError):
            await self.measure()
        self.changed.set()
        self.changed = asyncio.Event()

    async def heard(self) -> None:
        """Take note that requests may have been made or changed elsewhere."""
        self._asked.set()
        await self._tell()

    async def cancelled(self) -> None:
        """Count a request that was cancelled."""
        self._metrics.requests.labels("cancelled").inc()
        await self._tell()


def pids_tried(wanted: str) -> Sequence[Pids]:
    """Return which numbers are tried for what a request wants; the later ones if the first are taken."""
    return (Pids.ORIGINAL, Pids.NEW) if wanted == "any" else (Pids(wanted),)


def _runs(pid: int, start_time: int) -> bool:
    """Whether a task runs, on its own; one that is still traced or unrestored is about to be let go or to be ended."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    try:
        while (stat := procfs.stat(pid)).start_time == start_time and stat.state not in "ZX":
            if procfs.status(pid)["TracerPid"] == "0" and stat.comm != UNRESTORED:
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
    except CrdError:
        pass
    return False
