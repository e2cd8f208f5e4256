"""Pipes, and reading a stream: many system calls in one call without the GIL."""

from __future__ import annotations

import fcntl
from contextlib import suppress

from crd.native.check import call
from crd.native.ffi import ffi, lib

_F_SETPIPE_SZ, _PIPE_BYTES = 1031, 1 << 20


def widen_pipe(fd: int) -> None:
    """Give a pipe the largest capacity that needs no privilege, if it may have it; leave anything else alone."""
    with suppress(OSError):
        fcntl.fcntl(fd, _F_SETPIPE_SZ, _PIPE_BYTES)


class Stream:
    """Reads a descriptor that can be polled; one thread at a time."""

    def __init__(self, fd: int, stop_fd: int, pipe: tuple[int, int] | None) -> None:
        """Read from descriptors that stay the caller's.

        Args:
            fd: of the stream.
            stop_fd: as soon as it can be read, nothing waits for the stream any more.
            pipe: an empty one, into which what is in ``fd`` is moved before it is read, if that is a pipe, too.
        """
        pipe_out, pipe_in = pipe or (-1, -1)
        self._stream = ffi.new("struct crd_stream *", {"fd": fd, "stop_fd": stop_fd, "pipe_in": pipe_in,
                                                       "pipe_out": pipe_out})
        self._filled = ffi.new("size_t *")

    def read(self, buffer: memoryview) -> int:
        """Fill the buffer, unless the stream ends or is stopped before; return the bytes.

        Raises:
            NativeError: poll(2), splice(2) or read(2) failed.
        """
        call(lib.crd_stream_read, self._stream, ffi.from_buffer(buffer), len(buffer), self._filled)
        return int(self._filled[0])
