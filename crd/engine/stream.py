"""Image streams on descriptors: pipes, sockets, files; nothing seeks."""

from __future__ import annotations

import errno
import os
import select
from typing import TYPE_CHECKING

from crd.errors import CrdError, EngineError, ImageSinkClosed, ImageSinkFull
from crd.native.stream import widen_pipe

if TYPE_CHECKING:
    from crd.image.fields import BytesLike

_IOV_MAX = 1024


class DescriptorSink:
    """Writes all of what it is given, in order: short writes go on, EAGAIN waits, signals are no error."""

    def __init__(self, fd: int) -> None:
        """Write to ``fd``, which stays the caller's."""
        self._fd = fd
        widen_pipe(fd)

    def write(self, *buffers: BytesLike) -> None:
        """Write the buffers one after the other.

        Raises:
            ImageSinkClosed: nobody reads any more.
            ImageSinkFull: there is no space left.
            EngineError: any other error of write(2).
        """
        views = [memoryview(buffer) for buffer in buffers if memoryview(buffer).nbytes]
        while views:
            try:
                written = os.writev(self._fd, views[:_IOV_MAX])
            except BlockingIOError:
                _await(self._fd, select.POLLOUT)
                continue
            except OSError as error:
                raise _write_error(error) from error
            while views and written >= views[0].nbytes:
                written -= views.pop(0).nbytes
            if written:
                views[0] = views[0][written:]

    def splice(self, pipe: int, length: int) -> int:
        """Move what is in a pipe, without copying it if we write to a pipe, too; wait for something to be in it.

        Args:
            pipe: the end to read.
            length: how many bytes at most.

        Returns:
            How many bytes were moved.

        Raises:
            EngineError: nobody writes to the pipe any more; or as ``write``.
        """
        while True:
            try:
                moved = os.splice(pipe, self._fd, length)
            except BlockingIOError:
                _await(self._fd, select.POLLOUT)
                continue
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise _write_error(error) from error
                content = os.read(pipe, length)  # a file that is only appended to, for example
                self.write(content)
                moved = len(content)
            if not moved:
                raise EngineError("the image ended before its end")
            return moved


class DescriptorSource:
    """Reads what is there."""

    def __init__(self, fd: int) -> None:
        """Read from ``fd``, which stays the caller's."""
        self._fd = fd
        widen_pipe(fd)

    def readinto(self, buffer: memoryview, /) -> int:
        """Read into the buffer; 0 = the end.

        Raises:
            EngineError: read(2) failed.
        """
        while True:
            try:
                return os.readv(self._fd, [buffer])
            except BlockingIOError:
                _await(self._fd, select.POLLIN)
            except OSError as error:
                raise EngineError(f"reading the image: {error.strerror}", errno=error.errno) from error


def _await(fd: int, event: int) -> None:
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()


def _write_error(error: OSError) -> CrdError:
    if error.errno == errno.EPIPE:
        return ImageSinkClosed("nobody reads the image any more")
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return ImageSinkFull(f"writing the image: {error.strerror}", hint="Free some space, or write elsewhere.")
    return EngineError(f"writing the image: {error.strerror}", errno=error.errno)
