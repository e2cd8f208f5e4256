"""Image streams into the archive: hashed and compressed on threads, stored in order, in bounded memory."""

from __future__ import annotations

import asyncio
import fcntl
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.archive.cutter import Batch, FrameCutter
from crd.archive.layout import ENTRY, FRAMES_MAX, digest_of, header, trailer
from crd.archive.threads import to_end
from crd.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Callable

    from crd.archive.stores.store import Upload
    from crd.ids import Crid

_F_SETPIPE_SZ, _PIPE_BYTES = 1031, 1 << 20


@dataclass(frozen=True, slots=True)
class Stored:
    """An image that is durable.

    Attributes:
        crid: its identifier.
        digest: see ``crd.archive``, in hexadecimal.
        image_bytes: of the stream.
        stored_bytes: of the object.
    """

    crid: Crid
    digest: str
    image_bytes: int
    stored_bytes: int


def key_of(crid: int) -> str:
    """Return the key of an image."""
    return f"{crid:016x}.image"


class ImageSink:
    """One image on its way into the store."""

    def __init__(self, upload: Upload, *, level: int, threads: int) -> None:
        """Write into an upload; ``Archive.sink`` makes these."""
        self._upload = upload
        self._level = level
        self._threads = threads
        self._entries = bytearray()
        self.image_bytes = 0
        self.stored_bytes = 0

    async def drain(self, fd: int, progress: Callable[[int], None] | None = None) -> int:
        """Read a pipe to its end, which stays the caller's; return the bytes.

        Args:
            fd: the end to read.  Nothing reads it any more when this returns or raises, be it by a cancellation.
            progress: told the bytes so far, now and then.

        Raises:
            ArchiveFull, ArchiveUnavailable: they could not be stored, or read.
            ArchiveError: the image is larger than an object can be.
        """
        with suppress(OSError):
            fcntl.fcntl(fd, _F_SETPIPE_SZ, _PIPE_BYTES)
        loop = asyncio.get_running_loop()
        batches: asyncio.Queue[Batch | None] = asyncio.Queue()
        cutter = FrameCutter(fd, lambda batch: loop.call_soon_threadsafe(batches.put_nowait, batch),
                             level=self._level, threads=self._threads)
        with ThreadPoolExecutor(self._threads, "crd-compress") as executor, closing(cutter):
            cutting = asyncio.gather(*(loop.run_in_executor(executor, cutter.work) for _ in range(self._threads)),
                                     return_exceptions=True)
            cutting.add_done_callback(lambda _: batches.put_nowait(None))
            try:
                await self._write([header()])
                while batch := await batches.get():
                    await self._append(batch)
                    cutter.stored(batch)
                    if progress:
                        progress(self.image_bytes)
            finally:
                cutter.stop()
                errors = await to_end(cutting)
        for error in errors:
            if error:
                raise error
        if rest := cutter.rest():
            await self._append(rest)
        return self.image_bytes

    async def _append(self, batch: Batch) -> None:
        await self._write(batch.frames)
        self._entries += batch.entries
        self.image_bytes += batch.raw_bytes
        if len(self._entries) > FRAMES_MAX * ENTRY.size:
            raise ArchiveError(f"the image is larger than {self.image_bytes} bytes, which is more than is kept in one")

    async def _write(self, parts: list[bytes]) -> None:
        await self._upload.write(parts)
        self.stored_bytes += sum(map(len, parts))

    @property
    def digest(self) -> str:
        """The digest of what was drained, in hexadecimal."""
        return digest_of(self._entries, self.image_bytes).hex()

    async def commit(self, crid: Crid) -> Stored:
        """Make the image durable, and then visible.  If this raises, be it by a cancellation, it is not there.

        Raises:
            ArchiveError: nothing was drained, or the crid is taken.
            ArchiveFull, ArchiveUnavailable: it could not be stored.
        """
        if not self._entries:
            raise ArchiveError("the image is empty")
        await self._write([trailer(bytes(self._entries), self.image_bytes)])
        await self._upload.commit(key_of(crid))
        return Stored(crid, self.digest, self.image_bytes, self.stored_bytes)

    async def abort(self) -> None:
        """Leave nothing; does nothing after ``commit``."""
        await self._upload.abort()
