"""Images that leave this archive as streams, and streams that become images of it."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from crd.catalog.rows import Image
from crd.daemon.pipeline import feed, usable
from crd.daemon.streams import Pipe, both
from crd.engine.crid import CridCounter
from crd.engine.stream import DescriptorSource
from crd.errors import ImageCorrupt, ImageSinkClosed
from crd.image.profile import PAGE_BYTES, Pages, Process, Profile, SharedPages, Thread
from crd.image.reader import ImageReader
from crd.image.records import String
from crd.image.verify import verified
from crd.target.owner import ROOT_UID, owner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from crd.archive.sink import ImageSink
    from crd.daemon.pipeline import Pipeline
    from crd.ids import Crid
    from crd.image.codec import Record

IMPORTED = "imported"
_HOST_CHARACTERS = 255
_LATEST = datetime(9999, 1, 1, tzinfo=UTC)


async def export_image(pipeline: Pipeline, crid: Crid, begin: Callable[[Image], Awaitable[None]],
                       write: Callable[[bytes], Awaitable[None]]) -> Image:
    """Write the stream of an image, byte for byte as the engine wrote it.

    Args:
        pipeline: with the archive.
        crid: of the image.
        begin: told of the image once all that is stored of it has been checked, and before its first byte.
        write: takes the bytes.

    Raises:
        CrdError: what was written so far is no image.
    """
    image = usable(await pipeline.catalog.images.get(crid))
    source = await pipeline.verify(image)
    await begin(image)
    with Pipe() as pipe:

        async def pass_on() -> None:
            try:
                while chunk := await pipe.read():
                    await write(chunk)
            finally:
                pipe.close_read_end()

        await both(pass_on(), feed(source, pipe))
    return image


async def import_image(pipeline: Pipeline, read: Callable[[], Awaitable[bytes]]) -> Image:
    """Store a stream as an image with a crid of this host; it is checked whole before it is there.

    It belongs to no target, so no rule forgets it.

    Args:
        pipeline: with the archive.
        read: gives the stream bit by bit, nothing at its end.

    Raises:
        ImageError: it is no whole image of crd's profile; nothing is kept.
        ArchiveFull, ArchiveUnavailable: it cannot be stored.
    """
    began = time.monotonic()
    async with pipeline.sink() as sink:
        summary = await _drain(sink, read)
        crid = await asyncio.to_thread(CridCounter(pipeline.crid_file).next)
        return await pipeline.keep(sink, summary.row(
            crid, pipeline.host, image_bytes=sink.image_bytes, digest=sink.digest, origin=IMPORTED,
            duration_seconds=time.monotonic() - began))


async def _drain(sink: ImageSink, read: Callable[[], Awaitable[bytes]]) -> Summary:
    """Store and check a stream at once; that a pipe broke only says that another of the three failed."""
    with Pipe() as to_sink, Pipe() as to_check:

        async def copy() -> None:
            try:
                while chunk := await read():
                    await to_check.write(chunk)
                    await to_sink.write(chunk)
            finally:
                to_check.close_write_end()
                to_sink.close_write_end()

        async def check() -> Summary:
            try:
                return await asyncio.to_thread(summarised, to_check.read_end)
            finally:
                to_check.close_read_end()

        async def store() -> None:
            await sink.drain(to_sink.read_end)

        copying = asyncio.ensure_future(copy())
        rest = [asyncio.ensure_future(check()), asyncio.ensure_future(store())]
        try:
            await asyncio.wait([copying, *rest], return_when=asyncio.FIRST_EXCEPTION)
        finally:
            copying.cancel()  # its end is the end of what the others read
            summary, stored, copied = await asyncio.gather(*rest, copying, return_exceptions=True)
    for outcome in (copied, stored, summary):
        if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError | ImageSinkClosed):
            raise outcome
    assert isinstance(summary, Summary)  # noqa: S101
    return summary


@dataclass(slots=True)
class Summary:
    """What the catalog has to know of an image, from its records."""

    header: dict[str, Any] = field(default_factory=dict)
    pid: int = 0
    comm: str = ""
    uid: int = 0
    host: str = ""
    taken_ns: int = 0
    tasks: int = 0
    threads: int = 0
    memory_bytes: int = 0

    def add(self, record: Record) -> None:
        """Take in the next record."""
        if isinstance(record, Profile):
            self.host, self.taken_ns, self.tasks = record.host, record.taken_realtime_ns, record.processes
        elif isinstance(record, String) and not self.pid:
            self.comm = record.text
        elif isinstance(record, Process) and not self.pid:
            self.pid = record.pid
        elif isinstance(record, Thread):
            its = owner([(record.uids, record.gids, record.capabilities.permitted | record.capabilities.inheritable)])
            self.uid = its if self.uid == its or not self.threads else ROOT_UID
            self.threads += 1
        elif isinstance(record, Pages | SharedPages):
            self.memory_bytes += PAGE_BYTES * sum(run.pages for run in record.runs)

    def row(self, crid: Crid, host: str, *, image_bytes: int, digest: str, origin: str,
            duration_seconds: float = 0.0) -> Image:
        """Return the row of an image that this daemon did not take; ``origin`` says where it comes from."""
        taken_at = min(datetime.fromtimestamp(min(self.taken_ns / 1e9, _LATEST.timestamp()), UTC), _LATEST)
        return Image(
            crid=crid, host=host, target=None, pid=self.pid, comm=self.comm, uid=self.uid, taken_at=taken_at,
            engine=origin, method=origin, method_reason=f"taken on {self.host[:_HOST_CHARACTERS]}",
            tasks=self.tasks, threads=self.threads, image_bytes=image_bytes, memory_bytes=self.memory_bytes,
            stored_bytes=0, stop_seconds=0.0, duration_seconds=duration_seconds, digest=digest, header=self.header)


def summarised(fd: int) -> Summary:
    """Read a pipe to its end, and check every record of the image.

    Raises:
        ImageError: it is none, or something is behind it.
    """
    own = os.dup(fd)
    try:
        source = DescriptorSource(own)
        reader = ImageReader(source)
        summary = Summary(header=reader.header.to_json())
        for record in verified(reader):
            summary.add(record)
        if source.readinto(memoryview(bytearray(1))):
            raise ImageCorrupt("something follows the tail", offset=reader.bytes_read)
        return summary
    finally:
        os.close(own)
