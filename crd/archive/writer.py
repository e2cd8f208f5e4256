"""A descriptor that a stream is written to, and that can be given up while nobody reads."""

from __future__ import annotations

import os
import select
import stat
from collections import deque
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING

from crd.errors import ArchiveError, ImageSinkClosed
from crd.native.stream import widen_pipe

if TYPE_CHECKING:
    from collections.abc import Sequence

_IOV_MAX = 1024


class StreamWriter:
    """Writes a stream to a descriptor; ``stop`` makes ``write`` return in another thread."""

    def __init__(self, fd: int) -> None:
        """Write to a pipe, or whatever blocks no longer than a disk does; it stays the caller's.

        Raises:
            ImageSinkClosed: nobody reads the pipe.
        """
        with ExitStack() as opened:
            self._fd = _own_end(fd)
            opened.callback(os.close, self._fd)
            self._stop = os.eventfd(0, os.EFD_CLOEXEC)
            opened.callback(os.close, self._stop)
            self._opened = opened.pop_all()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self._poll.register(self._stop, select.POLLIN)

    def stop(self) -> None:
        """Make ``write`` return soon."""
        os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """Free what it holds; only while nothing is written."""
        self._opened.close()

    def write(self, parts: Sequence[memoryview]) -> None:
        """Write the parts in order, unless stopped.

        Raises:
            ImageSinkClosed: nobody reads.
            ArchiveError: the stream cannot be written.
        """
        views = deque(part for part in parts if part)
        while views:
            if any(fd == self._stop for fd, _ in self._poll.poll()):
                return
            try:
                written = os.writev(self._fd, list(islice(views, _IOV_MAX)))
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise ImageSinkClosed from error
            except OSError as error:
                raise ArchiveError(f"writing the image: {error.strerror}") from error
            while views and written >= len(views[0]):
                written -= len(views.popleft())
            if written:
                views[0] = views[0][written:]


def _own_end(fd: int) -> int:
    """Return another descriptor for the same pipe, which can be made not to block without the caller's noticing."""
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return os.dup(fd)
    widen_pipe(fd)
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:  # ENXIO
        raise ImageSinkClosed from error
