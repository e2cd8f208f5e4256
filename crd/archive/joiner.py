"""Frames joined into the stream they were cut from: threads decompress side by side, and take turns to write."""

from __future__ import annotations

import os
import select
import stat
import threading
from collections import deque
from typing import TYPE_CHECKING

import zstandard

from crd.errors import ArchiveError, BlobCorrupt, ImageSinkClosed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.archive.layout import Frame

    Piece = tuple[Frame, memoryview]

_FRAMES_AT_ONCE = 4


class FrameJoiner:
    """Writes a stream to a descriptor, and can be stopped while nobody reads."""

    def __init__(self, fd: int) -> None:
        """Write to a pipe, or whatever blocks no longer than a disk does; it stays the caller's.

        Raises:
            ImageSinkClosed: nobody reads the pipe.
        """
        self._fd = _own_end(fd)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self._poll.register(self._stop, select.POLLIN)
        self._todo: deque[tuple[int, Sequence[Piece]]] = deque()
        self._turn = threading.Condition()  # who writes: guards the poll and the number
        self._n_written = 0
        self._n_given = 0
        self._stopped = False

    def give(self, pieces: Sequence[Piece]) -> None:
        """Say what comes next; only while no thread is at ``work``."""
        for start in range(0, len(pieces), _FRAMES_AT_ONCE):
            self._todo.append((self._n_given, pieces[start:start + _FRAMES_AT_ONCE]))
            self._n_given += 1

    def stop(self) -> None:
        """Make ``work`` return soon, in all threads."""
        self._stopped = True
        os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """Free what it holds; only when ``work`` has returned in all threads."""
        os.close(self._fd)
        os.close(self._stop)

    def work(self) -> None:
        """Write what was given, unless stopped; several threads may run this.

        Raises:
            BlobCorrupt: a frame is damaged: what was written so far is no image.
            ImageSinkClosed: nobody reads.
            ArchiveError: the stream cannot be written.
        """
        decompressor = zstandard.ZstdDecompressor()
        try:
            while self._todo and not self._stopped:
                try:
                    number, pieces = self._todo.popleft()
                except IndexError:  # another thread was faster
                    return
                parts = [_decompressed(decompressor, frame, stored) for frame, stored in pieces]
                with self._turn:
                    self._turn.wait_for(lambda n=number: self._stopped or self._n_written == n)  # type: ignore[misc]
                    for part in parts:
                        self._write(part)
                    self._n_written += 1
                    self._turn.notify_all()
        except BaseException:
            self.stop()
            raise
        finally:
            with self._turn:
                self._turn.notify_all()

    def _write(self, part: bytes) -> None:
        view = memoryview(part)
        while view and not self._stopped:
            if any(fd == self._stop for fd, _ in self._poll.poll()):
                return
            try:
                view = view[os.write(self._fd, view):]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise ImageSinkClosed from error
            except OSError as error:
                raise ArchiveError(f"writing the image: {error.strerror}") from error


def _own_end(fd: int) -> int:
    """Return another descriptor for the same pipe, which can be made not to block without the caller's noticing."""
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return os.dup(fd)
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:  # ENXIO
        raise ImageSinkClosed from error


def _decompressed(decompressor: zstandard.ZstdDecompressor, frame: Frame, stored: memoryview) -> bytes:
    """Decompress a frame; what it says of its size is checked before that much is allocated."""
    try:
        if zstandard.frame_content_size(stored) == frame.raw_bytes:
            return decompressor.decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BlobCorrupt(f"the frame at {frame.offset} is damaged: {error}", offset=frame.offset) from error
    raise BlobCorrupt(f"the frame at {frame.offset} is not of {frame.raw_bytes} bytes", offset=frame.offset)
