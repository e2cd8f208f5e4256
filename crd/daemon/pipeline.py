"""The whole flow of an image, in either direction.

::

    checkpoint:  target -> engine worker -> image stream -> archive -> catalog
    restart:     catalog -> archive -> image stream -> engine worker -> running tasks
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from crd.catalog.rows import Image
from crd.daemon.streams import Pipe, both
from crd.engine.api import Pids, RestartOptions
from crd.engine.rehearsal import Rehearsal
from crd.errors import (
    ArchiveError,
    BlobCorrupt,
    BlobMissing,
    CopyFailed,
    FeatureMissing,
    ImageDamaged,
    ImageNotFound,
    ImageSinkClosed,
    KeyMissing,
    NativeError,
    RestartError,
    WorkerDied,
)
from crd.ids import Crid
from crd.image.front import header_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from crd.archive.archive import Archive
    from crd.archive.sink import ImageSink
    from crd.archive.source import ImageSource
    from crd.catalog.catalog import Catalog
    from crd.daemon.scopes import Scope
    from crd.daemon.tracking import Tracks
    from crd.engine.api import CheckpointOptions, CheckpointResult, RestartPlan, RestartResult
    from crd.engine.client import Worker
    from crd.engine.pool import WorkerPool
    from crd.target.model import CheckReport

logger = logging.getLogger(__name__)

_NAMED_MAX = 20


@dataclass(slots=True)
class Pipeline:
    """What images flow through; the times that a job may take can be changed."""

    workers: WorkerPool
    archive: Archive
    catalog: Catalog
    crid_file: Path
    host: str
    tracks: Tracks
    checkpoint_seconds: float
    restart_seconds: float
    linux_cr: str = ""

    async def checkpoint(self, pid: int, options: CheckpointOptions, *, target: str | None = None,
                         tags: tuple[str, ...] = (), progress: Callable[[int], None] | None = None,
                         kept: Callable[[Image], Awaitable[None]] | None = None) -> Image:
        """Take an image of a process, and return it once it is durable and in the catalog.

        ``kept`` is called then, before the process is ended if it is to be.

        Raises:
            CrdError: there is no image, nothing is half-written, and the target runs on.
        """
        with self.tracks.of(target) as track:
            followed = track.base if track else None
            if followed and track and track.inherited:
                await self.archive.recall(followed, track.digest)
            base = followed or await self.catalog.images.relative(pid, target)
            async with (_in_time(self.checkpoint_seconds, "checkpoint"), self.workers.lease_for_checkpoint() as worker,
                        self.sink(base, follow=followed is not None) as sink):
                with Pipe() as pipe:
                    await worker.begin_checkpoint(pid, pipe.write_end, options, self.crid_file,
                                                  track.notes(since=sink.follows) if track else None)
                    pipe.close_write_end()
                    result = await both(worker.written(), sink.drain(pipe.read_end, progress))
                if result.image_bytes not in {None, sink.received_bytes}:
                    raise ArchiveError(f"{sink.received_bytes} bytes of {result.image_bytes} arrived")
                image = _row(result, sink, self.host, target, tags)
                for what in result.lost:
                    logger.info("image %d: %s", image.crid, what, extra={"event": "image.lacks", "crid": image.crid})
                image = await self.keep(sink, image)
                if track:
                    track.follow(worker.take_notes(), image.crid, image.digest)
                if kept:
                    await kept(image)
                await worker.commit()
                return image

    async def check(self, pid: int) -> CheckReport:
        """Have a worker look what would keep a process from being checkpointed.

        Raises:
            TargetNotFound, TargetGone: there is no such process.
        """
        async with _in_time(self.checkpoint_seconds, "checkpoint"), self.workers.lease() as worker:
            return await worker.check(pid)

    async def keep(self, sink: ImageSink, image: Image) -> Image:
        """Make what was drained durable as an image, and return its row.

        Raises:
            CrdError: it is not there.
        """
        await self.catalog.images.begin(image)
        try:
            stored = await sink.commit(image.crid)
        except BaseException:
            await asyncio.shield(self.catalog.images.drop(image.crid))
            raise
        return await self.catalog.images.finish(image.crid, stored.stored_bytes)

    async def restart(self, crid: Crid, options: RestartOptions,
                      note: Callable[[RestartResult], Awaitable[None]], serve: Callable[[int], None],
                      scope: Scope | None = None) -> RestartResult:
        """Restart an image: everything stored is checked before the first task is made.

        Args:
            crid: of the image.
            options: how.
            note: makes durable which tasks are about to run; if it raises, none does.
            serve: takes over each descriptor that tells of the calls of tasks which ran under ``crctl run``.
            scope: which they are to live in.

        Raises:
            CrdError: no task of it runs.
        """
        async with _in_time(self.restart_seconds, "restart"), self._made(crid, options, scope) as (worker, result):
            await note(result)
            worker.hand_over(serve)
            await worker.commit()
            return result

    async def plan(self, crid: Crid, options: RestartOptions) -> RestartPlan:
        """Tell what a restart of an image would make, and what stands in its way; nothing is made.

        Raises:
            CrdError: the image cannot be read.
        """
        source = await self.archive.source(usable(await self.catalog.images.get(crid)).crid)
        async with _in_time(self.restart_seconds, "restart"), self.workers.lease() as worker:
            with Pipe() as pipe:
                await worker.begin_plan(pipe.read_end, replace(options, linux_cr=self.linux_cr))
                pipe.close_read_end()
                return await both(worker.planned(), feed_in_part(source, pipe))

    async def rehearse(self, crid: Crid) -> Rehearsal:
        """Let a copy of the tasks of an image run for a moment in a sandbox; nothing is left of it.

        Where that cannot be, they are only made, in a pid namespace of their own, and none runs: it would write to the
        files that it shares with the original.

        Raises:
            CopyFailed: the copy did not run on.
            CrdError: it cannot be restarted here and now.
        """
        async with _in_time(self.restart_seconds, "restart"):
            source = await self.verify(usable(await self.catalog.images.get(crid)))
            try:
                async with self.workers.lease() as worker:
                    with Pipe() as pipe:
                        await worker.begin_rehearsal(pipe.read_end)
                        pipe.close_read_end()
                        return await both(worker.rehearsed(), feed(source, pipe))
            except CopyFailed:
                raise
            except (RestartError, FeatureMissing, NativeError) as error:
                hindrance = error.message
            async with self._made(crid, RestartOptions(pids=Pids.NAMESPACE)) as (_, made):
                return Rehearsal(tasks=made.tasks, threads=made.threads, duration_seconds=made.duration_seconds,
                                 notes=made.notes, hindrance=hindrance)

    @asynccontextmanager
    async def _made(self, crid: Crid, options: RestartOptions,
                    scope: Scope | None = None) -> AsyncIterator[tuple[Worker, RestartResult]]:
        """Make the tasks of an image; unless the worker is told to commit, they end with the context."""
        source = await self.verify(usable(await self.catalog.images.get(crid)))
        async with self.workers.lease() as worker:
            if scope:
                await scope.take_in(worker.pid)
            with Pipe() as pipe:
                await worker.begin_restart(pipe.read_end, replace(options, linux_cr=self.linux_cr))
                pipe.close_read_end()
                result = await both(worker.ready(), feed(source, pipe))
            yield worker, result

    async def verify(self, image: Image) -> ImageSource:
        """Read and check all that is stored of an image, and return it.

        Damage is noted in the catalog, of all images that it hurts.

        Raises:
            BlobCorrupt, BlobMissing: it is damaged.
            ArchiveUnavailable: it cannot be read just now.
        """
        try:
            source = await self.archive.source(image.crid)
            await source.verify(image.digest)
        except (BlobCorrupt, BlobMissing) as error:
            await self.catalog.images.damaged(image.crid, error.message)
            if image.state != "damaged" and not isinstance(error, KeyMissing):
                await self._note_others(image.crid, error)
            raise
        return source

    async def _note_others(self, crid: Crid, error: ArchiveError) -> None:
        """Note in the catalog, and in the error, which other images the same damage hurts."""
        others = [other for other in await self.archive.hurt_by(error.details.get("key", "")) if other != crid]
        for other in others:
            logger.error("image %d is damaged: %s", other, error.message,
                         extra={"event": "image.damaged", "crid": other, "error": error.code})
            with suppress(ImageNotFound):  # forgotten meanwhile
                await self.catalog.images.damaged(other, error.message)
        if others:
            error.details["images"] = others
            error.hint = f"It hurts images {', '.join(map(str, others[:_NAMED_MAX]))}, too. {error.hint}".strip()

    @asynccontextmanager
    async def sink(self, base: Crid | None = None, *, follow: bool = False) -> AsyncIterator[ImageSink]:
        """Begin an image, of which nothing is left unless it is kept; arguments as of ``Archive.sink``."""
        sink = await self.archive.sink(base, follow=follow)
        try:
            yield sink
        finally:
            await asyncio.shield(sink.abort())


def usable(image: Image) -> Image:
    """Return the image, unless it is known to be damaged.

    Raises:
        ImageDamaged: it is.
    """
    if image.state == "damaged":
        raise ImageDamaged(f"image {image.crid} is damaged: {image.damage}", crid=image.crid,
                           hint="crctl images lists others; once it is repaired, crctl verify says so.")
    return image


async def feed(source: ImageSource, pipe: Pipe) -> None:
    """Write a stored image into a pipe, and close that end."""
    try:
        await source.pump(pipe.write_end)
    finally:
        pipe.close_write_end()


async def feed_in_part(source: ImageSource, pipe: Pipe) -> None:
    """Write as much of a stored image into a pipe as is wanted."""
    with suppress(ImageSinkClosed):
        await feed(source, pipe)


@asynccontextmanager
async def _in_time(seconds: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise WorkerDied(f"the {what} took longer than {seconds:g} s and was given up",
                         hint=f"Raise engine.{what}_timeout if the target is that large.") from error


def _row(result: CheckpointResult, sink: ImageSink, host: str, target: str | None, tags: tuple[str, ...]) -> Image:
    return Image(
        crid=Crid(result.crid), host=host, target=target, pid=result.pid, comm=result.comm, uid=result.uid,
        taken_at=datetime.fromtimestamp(result.taken_at, UTC), engine=result.engine, method=result.method,
        method_reason=result.method_reason, tasks=result.tasks, threads=result.threads,
        image_bytes=sink.image_bytes, memory_bytes=result.memory_bytes, stored_bytes=0,
        stop_seconds=result.stop_seconds, duration_seconds=result.duration_seconds, digest=sink.digest,
        tags=list(tags), header=result.header or header_of(sink.front).to_json())
