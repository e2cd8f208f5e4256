"""The daemon, put together: what starts in which order, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from contextlib import AsyncExitStack, suppress
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from crd.api.access import Limits
from crd.api.server import Server
from crd.archive.archive import Archive
from crd.catalog.catalog import Catalog
from crd.clock import Clock, SystemClock
from crd.daemon.arrival import Arrival
from crd.daemon.checkpoints import Checkpoints
from crd.daemon.handlers import Handlers
from crd.daemon.health import Health
from crd.daemon.kept_notes import KeptNotes
from crd.daemon.meter import Meter
from crd.daemon.notify import is_booted, keep, keeps, notify, passed_fds
from crd.daemon.pipeline import Pipeline
from crd.daemon.readers import Readers
from crd.daemon.restarts import Restarts
from crd.daemon.retention import Retention
from crd.daemon.scheduler import ScheduledTarget, Scheduler
from crd.daemon.scrub import Scrub
from crd.daemon.served import SERVED, ServedPrograms
from crd.daemon.shutdown import Guards, Shutdown
from crd.daemon.stores import open_store
from crd.daemon.targets import Whereabouts, wanted_targets
from crd.daemon.tracking import Tracks
from crd.engine.api import USERSPACE, After, CheckpointOptions
from crd.engine.crid import CridCounter
from crd.engine.pool import WorkerPool
from crd.engine.userspace.limits import raise_our_own
from crd.errors import BlobCorrupt, BlobMissing, CrdError, TargetNotFound, TargetRuns
from crd.ids import Crid
from crd.metrics.exporter import Exporter
from crd.metrics.names import Metrics
from crd.reserve import Reserve
from crd.settings.load import changed_keys, load
from crd.settings.state import held_state

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Sequence
    from datetime import datetime
    from pathlib import Path

    from crd.archive.stores.spooled import SpooledStore
    from crd.catalog.rows import Image
    from crd.settings.models import Settings, TargetSettings

logger = logging.getLogger(__name__)

_QUEUE_SECONDS = 30.0


class App:
    """Everything the daemon is made of.  ``serve`` runs it until it is told to stop."""

    def __init__(self, settings: Settings, config: Path | None = None, clock: Clock | None = None) -> None:
        """Make a daemon of settings that were read from a file; nothing happens before ``serve``."""
        self.settings = self._launched_with = settings
        self._config = config
        self.clock: Clock = clock or SystemClock()
        self.started_at = self.clock.now()
        self.version = version("crd")
        self.host = settings.catalog.host or socket.gethostname()
        self.pid = os.getpid()
        self.metrics = Metrics()
        self.metrics_url = ""
        self.features: dict[str, bool] = {}
        self.ready = asyncio.Event()
        self.readers = Readers()
        self.whereabouts = Whereabouts()
        self._jobs: set[asyncio.Task[Any]] = set()
        self._requests_changed = asyncio.Event()
        self.catalog: Catalog
        self.archive: Archive
        self.spool: SpooledStore | None = None
        self.reserve = Reserve(settings.daemon.state_dir / "reserve")
        self.without_row: Sequence[Crid] = ()  # images that only the archive knew at the start, and only the catalog
        self.without_object: Sequence[Crid] = ()
        self.meter: Meter
        self.checkpoints: Checkpoints
        self.restarts: Restarts
        self.scheduler: Scheduler
        self.health: Health
        self.pipeline: Pipeline
        self.engine: str
        self.tracks: Tracks
        self.served: ServedPrograms
        self.retention: Retention
        self.scrub: Scrub
        self.guards: Guards
        self.shutdown: Shutdown

    async def serve(self, stop: asyncio.Event) -> None:
        """Start everything, say that we are ready, and end everything when ``stop`` is set.

        Raises:
            CrdError: it cannot start.
        """
        settings, descriptors = self.settings, raise_our_own()
        async with AsyncExitStack() as stack:
            stack.enter_context(held_state(settings.daemon.state_dir))
            await asyncio.to_thread(self.reserve.begin)
            # First: without its keys nothing is touched, not even the catalog.
            opened = await stack.enter_async_context(open_store(settings))
            self.spool = opened.spool
            # It loads the engine while we go on.
            workers = await stack.enter_async_context(WorkerPool(settings.engine_socket))
            self.catalog = await stack.enter_async_context(
                await Catalog.open(settings.catalog_url, self.host, self.reserve))
            lost = await stack.enter_async_context(self.catalog.present(self.clock, self._requests_changed.set))
            self.archive = await stack.enter_async_context(
                Archive(opened.store, level=settings.archive.level, threads=settings.archive.threads,
                        away=not opened.ours.is_set(), needs=settings.daemon.state_dir / "needs.db",
                        reserve=self.reserve))
            arrival = Arrival(opened, self.archive, await self._recover(), self._apply_rules)
            await arrival.begin()
            async with workers.lease() as worker:
                self.engine = await worker.serving(self.checkpoint_options())
            notes_writes = settings.engine.note_writes and self.engine == USERSPACE
            kept_notes = KeptNotes(settings.daemon.state_dir / "notes") if keeps() else None
            self.tracks = stack.enter_context(Tracks(kept_notes, enabled=notes_writes, fds_max=descriptors // 4))
            self._assemble(workers)
            async with workers.lease() as worker:
                self._offer(await worker.features())
            passed = passed_fds()
            exporter = stack.enter_context(
                Exporter(settings.metrics.listen, self.metrics.exposition, passed.get("metrics")))
            keep("metrics", exporter.fd)
            self.metrics_url = exporter.url
            await self.restarts.recover()
            await self._add_targets()
            self._inherit(passed, kept_notes)
            if self.archive.is_known:
                self._apply_rules()
            server = Server(passed.get("api", settings.api.socket), Handlers(self).handle,
                            public=settings.api.public, group=settings.api.group,
                            limits=Limits.within(descriptors))
            await server.start()
            background = self._begin_background(arrival, stop)
            gc.freeze()  # what stays is not looked through again, for which everything would wait 50 ms now and then
            self.ready.set()
            notify("READY=1", f"STATUS={self._status()}")
            logger.info("ready", extra={"event": "daemon.ready"})
            await _either(stop.wait(), opened.lease, lost)
            notify("STOPPING=1")
            logger.info("stopping", extra={"event": "daemon.stopping"})
            await self._stop(server, background)
            if arrival.fault:
                raise arrival.fault

    def _begin_background(self, arrival: Arrival, stop: asyncio.Event) -> list[asyncio.Task[None]]:
        """Begin what goes on until we end; the last of it watches the others."""
        works = {"restarts": self.restarts.run(), "meter": self.meter.run(), "queue": self._watch_queue(),
                 "reserve": self.reserve.run(), "scrub": self.scrub.run(), "retention": self.retention.run(),
                 "hearing": self._hear()}
        if keeps() and is_booted():
            works["guards"] = self.guards.run()
        if self.spool:
            works["spool"] = arrival.run(stop)
        begun = [asyncio.create_task(work, name=name) for name, work in works.items()]
        return [*begun, asyncio.create_task(self.health.run(tuple(begun)), name="health")]

    async def reload(self) -> list[str]:
        """Once we are ready, read the settings again; take over targets, schedules, retention and limits, or nothing.

        Returns:
            what has changed beside these, and waits for a new start.

        Raises:
            SettingsError: they are wrong.
            CatalogError: the catalog cannot be read.
        """
        await self.ready.wait()
        async with self.scheduler.changing:
            return await self._reload()

    async def _reload(self) -> list[str]:
        settings = load(self._config)
        stored, held = await self.catalog.targets.all(), await self.catalog.targets.held()
        taken = await self.catalog.images.last_taken()
        # From here on nothing fails.
        wanted = wanted_targets(settings, stored, held)
        for name, target in list(self.scheduler.targets.items()):
            if target.source == "settings" or name in settings.targets:
                now = wanted.get(name)
                if now is None or (now.settings, now.source) != (target.settings, target.source):
                    self.remove_target(name, keep_metrics=now is not None)
        for name, now in wanted.items():
            if name not in self.scheduler.targets and (now.source == "settings" or name in self.settings.targets):
                self.add_target(name, now.settings, taken.get(name), source=now.source, held=now.held)
        self.settings = settings
        self.checkpoints.limit(settings.engine.workers)
        self.pipeline.checkpoint_seconds = settings.engine.checkpoint_timeout
        self.pipeline.restart_seconds = settings.engine.restart_timeout
        self.start(self.retention.apply_all())
        waiting = changed_keys(self._launched_with, settings)
        logger.info("settings reloaded%s", f"; a new start is needed for {', '.join(waiting)}" if waiting else "",
                    extra={"event": "daemon.reloaded"})
        return waiting

    def checkpoint_options(self, target: ScheduledTarget | None = None, after: After = After.RUN) -> CheckpointOptions:
        """Return how images are taken by the settings, of a target or of any process."""
        engine = self.settings.engine
        return CheckpointOptions(after=after, engine=engine.kind, linux_cr=engine.linux_cr, method=engine.method,
                                 freeze_seconds=engine.freeze_timeout,
                                 save_files_bytes=(target and target.settings.save_files) or 0)

    def add_target(self, name: str, settings: TargetSettings, last_taken: datetime | None, *, source: str,
                   held: bool) -> ScheduledTarget:
        """Begin with a target, of which there may be images from before."""
        self.metrics.add_target(name, last_taken)
        self.guards.changed.set()
        return self.scheduler.add(name, settings, source=source, held=held)

    def remove_target(self, name: str, *, keep_metrics: bool = False) -> None:
        """End with a target; a checkpoint under way goes on."""
        self.scheduler.remove(name)
        self.guards.changed.set()
        self.tracks.drop(name)
        self.checkpoints.failing.pop(name, None)
        if not keep_metrics:
            self.metrics.remove_target(name)

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run work that goes on when its caller is gone, and that a stop waits for."""
        job = asyncio.create_task(work)
        self._jobs.add(job)
        job.add_done_callback(self._forget)
        return job

    def _forget(self, job: asyncio.Task[Any]) -> None:
        self._jobs.discard(job)
        if not job.cancelled():
            job.exception()  # the caller may be gone: it is in the catalog and in the log

    def _assemble(self, workers: WorkerPool) -> None:
        settings = self.settings
        self.served = ServedPrograms(workers, self.checkpoint_options, settings.engine.crid_file,
                                     settings.engine.checkpoint_timeout, self.metrics.served)
        self.pipeline = Pipeline(workers, self.archive, self.catalog, settings.engine.crid_file, self.host, self.tracks,
                                 settings.engine.checkpoint_timeout, settings.engine.restart_timeout,
                                 settings.engine.linux_cr)
        self.meter = Meter(self.archive, self.spool, self.metrics)
        self.checkpoints = Checkpoints(self.pipeline, self.catalog, self.metrics, self.clock, self.meter,
                                       settings.engine.workers,
                                       lambda target: self.start(self.retention.apply_quietly(target)),
                                       self.whereabouts)
        self.restarts = Restarts(self.pipeline, self.catalog, self.metrics, self.clock, self.start, self.served.add,
                                 self._need_absence, self._restarted)
        self.scheduler = Scheduler(self.clock, self._due, self.checkpoints.skip)
        self.guards = Guards(self.scheduler.targets, self.whereabouts)
        self.shutdown = Shutdown(self.scheduler.targets, self.whereabouts, self.checkpoints, self.catalog, self.clock,
                                 self.checkpoint_options, self.restarts.boot_id)
        self.retention = Retention(self.catalog, self.archive, self.clock, self.readers, self.meter,
                                   lambda: self.settings.retention, self.scheduler.targets)
        self.scrub = Scrub(self.pipeline, self.metrics, self.clock, self.readers, lambda: self.settings.retention)
        self.health = Health(self.scheduler, workers, self.catalog, self.clock, self._status)
        self.metrics.engine = self.engine
        self.metrics.build.info({"version": self.version, "engine": self.engine})

    def _inherit(self, passed: dict[str, int], kept_notes: KeptNotes | None) -> None:
        """Go on with what the daemon before us left with systemd."""
        for name, fd in passed.items():
            if name.startswith(SERVED):
                self.served.add(fd, name)
        if kept_notes:
            self.tracks.inherit(kept_notes.take_over(passed, self.scheduler.targets if self.tracks.enabled else ()))

    def _offer(self, features: dict[str, bool]) -> None:
        self.features = features
        for name, available in features.items():
            self.metrics.feature.labels(name).set(available)

    def _status(self) -> str:
        return f"{len(self.scheduler.targets)} targets, {self.checkpoints.running} checkpoints under way"

    async def _recover(self) -> Callable[[], Coroutine[Any, Any, None]]:
        """Bring catalog and crid counter together after whatever ended the daemon before us.

        Returns:
            what brings the catalog together with the archive, now or later.
        """
        await self.catalog.checkpoints.recover(self.clock.now())
        if verified_at := await self.catalog.images.last_verified():
            self.metrics.last_scrub.set(verified_at.timestamp())
        counter = CridCounter(self.settings.engine.crid_file)
        await asyncio.to_thread(counter.raise_to, await self.catalog.images.max_crid())
        return partial(self._settle, await self.catalog.images.storing())

    async def _settle(self, left: Sequence[Image]) -> None:
        """Bring catalog and archive together; ``left`` is what was being made durable when we began."""
        there = await self.archive.crids()
        whole: dict[Crid, int] = {}
        for image in left:
            with suppress(BlobCorrupt, BlobMissing):
                stored = await self.archive.stored(image.crid)
                if stored.digest == image.digest:
                    whole[image.crid] = stored.stored_bytes
        settled = await self.catalog.images.settle(there, whole, [image.crid for image in left])
        for crid in settled.surplus:
            await self.archive.forget(crid)
            await self.catalog.images.bury(crid)
        for what, crids in (("without a row in the catalog", settled.unknown), ("missing from the archive",
                                                                               settled.missing)):
            if crids:
                logger.warning("images %s: %s", what, ", ".join(map(str, crids[:20])),
                               extra={"event": "archive.unsettled"})
        await asyncio.to_thread(CridCounter(self.settings.engine.crid_file).raise_to,
                                await self._newest({*there}.difference(settled.unknown), settled.unknown))
        self.without_row, self.without_object = settled.unknown, settled.missing

    async def _newest(self, known: Collection[Crid], unknown: Sequence[Crid]) -> Crid:
        """Return the largest crid that the archive has; of unknown ones only what is an image has one."""
        newest = max(known, default=Crid(0))
        for crid in sorted(unknown, reverse=True):
            if crid < newest:
                break
            try:
                await self.archive.source(crid)
            except BlobCorrupt:
                continue
            except BlobMissing:
                pass  # the key for it is
            return crid
        return newest

    def _apply_rules(self) -> None:
        self.start(self.retention.apply_all())

    async def _add_targets(self) -> None:
        stored, held = await self.catalog.targets.all(), await self.catalog.targets.held()
        taken = await self.catalog.images.last_taken()
        for name, wanted in wanted_targets(self.settings, stored, held).items():
            self.add_target(name, wanted.settings, taken.get(name), source=wanted.source, held=wanted.held)

    async def _due(self, target: ScheduledTarget, late_seconds: float) -> None:
        await self.checkpoints.take_due(target, self.checkpoint_options(target), late_seconds)

    def _restarted(self, target: str, pid: int, start_time: int) -> None:
        self.whereabouts.restarted(target, pid, start_time)
        self.guards.changed.set()

    def _need_absence(self, name: str) -> None:
        """Let only what does not run be restarted after a boot: its unit may have been started anew."""
        with suppress(TargetNotFound, KeyError):
            found = self.whereabouts.find(self.scheduler.targets[name])
            raise TargetRuns(f"target {name} runs already, as process {found.pid}",
                             hint="What crd restarts after a boot must not be started by others: systemctl disable.")

    async def _hear(self) -> None:
        """Hear of requests that daemons of other hosts have made or changed."""
        while True:
            await self._requests_changed.wait()
            self._requests_changed.clear()
            with suppress(CrdError):
                await self.restarts.heard()

    async def _watch_queue(self) -> None:
        while True:
            with suppress(CrdError):
                await self.restarts.measure()
            await asyncio.sleep(_QUEUE_SECONDS)

    async def _stop(self, server: Server, background: list[asyncio.Task[None]]) -> None:
        """Take no more requests, let jobs end in time, and end the rest: their workers die, targets run on."""
        grace = self.settings.daemon.stop_grace
        await self.scheduler.close()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await self.scheduler.drain(grace)
        if self._jobs:
            _, late = await asyncio.wait(self._jobs, timeout=grace)
            for job in late:
                job.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await server.close()
        await self.served.close()


async def _either(first: Coroutine[Any, Any, object], *others: asyncio.Task[None] | None) -> None:
    """Wait until one of them has ended, however it did."""
    stopped = asyncio.create_task(first)
    try:
        await asyncio.wait([stopped, *filter(None, others)], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
