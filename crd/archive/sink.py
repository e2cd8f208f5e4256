"""Image streams into the archive: hashed and compressed on threads, in bounded memory."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import zstandard
from blake3 import blake3

from crd.archive.layout import ENTRY, FRAME_BYTES, checksum, header, trailer
from crd.errors import ArchiveError, ArchiveUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor, Future

    from crd.archive.stores.store import Upload
    from crd.ids import Crid

_F_SETPIPE_SZ, _PIPE_BYTES = 1031, 1 << 20
_WRITE_BYTES = 1 << 20
_IN_FLIGHT_PER_THREAD = 6


@dataclass(frozen=True, slots=True)
class Stored:
    """An image that is durable.

    Attributes:
        crid: its identifier.
        digest: BLAKE3 of the stream, in hexadecimal.
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
    """One image on its way into the store.

    A reader thread takes the stream from a pipe into buffers that are used again and again, and hashes it; the executor
    compresses; the event loop writes in order.
    """

    def __init__(self, upload: Upload, executor: Executor, threads: int, level: int) -> None:
        """Write into an upload; ``Archive.sink`` makes these."""
        self._upload = upload
        self._executor = executor
        self._level = level
        self._local = threading.local()
        self._free = threading.Semaphore(_IN_FLIGHT_PER_THREAD * threads)
        self._buffers: deque[bytearray] = deque()
        self._entries = bytearray()
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._hash = blake3()
        self._n_frames = 0
        self.image_bytes = 0
        self.stored_bytes = 0

    async def drain(self, fd: int, progress: Callable[[int], None] | None = None) -> int:
        """Read a pipe to its end, which stays the caller's; return the bytes.

        Args:
            fd: the end to read.
            progress: told the bytes so far, now and then.

        Raises:
            ArchiveFull, ArchiveUnavailable: they could not be stored.
        """
        with suppress(OSError):
            fcntl.fcntl(fd, _F_SETPIPE_SZ, _PIPE_BYTES)
        self._parts, self._parts_bytes = [header()], len(header())
        loop = asyncio.get_running_loop()
        frames: asyncio.Queue[Future[tuple[bytes, int]] | None] = asyncio.Queue()
        stop = threading.Event()

        def hand_over(frame: Future[tuple[bytes, int]] | None) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(frames.put_nowait, frame)

        reader = asyncio.create_task(asyncio.to_thread(self._read, fd, hand_over, stop))
        try:
            while frame := await frames.get():
                compressed, raw_bytes = await asyncio.wrap_future(frame)
                await self._append(compressed, raw_bytes)
                if progress:
                    progress(self.image_bytes)
            await reader
            await self._flush()
        finally:
            stop.set()
            for _ in range(64):
                self._free.release()
            if not reader.done():
                await asyncio.wait([reader])
        return self.image_bytes

    def _read(self, fd: int, hand_over: Callable[[Future[tuple[bytes, int]] | None], None],
              stop: threading.Event) -> None:
        """Cut the stream into frames; runs in a thread of its own."""
        try:
            poll = _Readable(fd, stop)
            while not stop.is_set():
                self._free.acquire()
                buffer = self._buffers.popleft() if self._buffers else bytearray(FRAME_BYTES)
                length = poll.fill(memoryview(buffer))
                if not length:
                    return
                view = memoryview(buffer)[:length]
                self._hash.update(view)
                hand_over(self._executor.submit(self._compress, buffer, length))
                if length < FRAME_BYTES:
                    return
        except OSError as error:
            raise ArchiveUnavailable(f"reading the image: {error.strerror}") from error
        finally:
            hand_over(None)

    def _compress(self, buffer: bytearray, length: int) -> tuple[bytes, int]:
        compressor: zstandard.ZstdCompressor | None = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = self._local.compressor = zstandard.ZstdCompressor(level=self._level)
        compressed = compressor.compress(memoryview(buffer)[:length])
        self._buffers.append(buffer)
        self._free.release()
        return compressed, length

    async def _append(self, compressed: bytes, raw_bytes: int) -> None:
        self._entries += ENTRY.pack(len(compressed), raw_bytes, checksum(compressed))
        self._n_frames += 1
        self.image_bytes += raw_bytes
        self._parts.append(compressed)
        self._parts_bytes += len(compressed)
        if self._parts_bytes >= _WRITE_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        parts, self._parts = self._parts, []
        self.stored_bytes += self._parts_bytes
        self._parts_bytes = 0
        await self._upload.write(parts)

    @property
    def digest(self) -> str:
        """BLAKE3 of what was drained, in hexadecimal."""
        return self._hash.hexdigest()

    async def commit(self, crid: Crid) -> Stored:
        """Make the image durable and visible.

        Raises:
            ArchiveError: nothing was drained, or the crid is taken.
            ArchiveFull, ArchiveUnavailable: it could not be stored.
        """
        if not self._n_frames:
            raise ArchiveError("the image is empty")
        digest = self._hash.digest()
        end = trailer(bytes(self._entries), self._n_frames, self.image_bytes, digest)
        await self._upload.write([end])
        self.stored_bytes += len(end)
        await self._upload.commit(key_of(crid))
        return Stored(crid, digest.hex(), self.image_bytes, self.stored_bytes)

    async def abort(self) -> None:
        """Leave nothing; does nothing after ``commit``."""
        await self._upload.abort()


class _Readable:
    """Fills buffers from a pipe, and can be stopped while it waits."""

    def __init__(self, fd: int, stop: threading.Event) -> None:
        self._fd = fd
        self._stop = stop

    def fill(self, view: memoryview) -> int:
        """Read until the view is full or the stream ends; return the bytes."""
        filled = 0
        while filled < len(view):
            if not select.select([self._fd], [], [], 0.2)[0]:
                if self._stop.is_set():
                    return 0
                continue
            try:
                n = os.readv(self._fd, [view[filled:]])
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    continue
                raise
            if not n:
                break
            filled += n
        return filled
