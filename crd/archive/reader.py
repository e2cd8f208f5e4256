"""A descriptor that a stream is read from, and that can be given up while nobody writes."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack

from crd.errors import ArchiveUnavailable, NativeError
from crd.image.generations import PREFIX_BYTES
from crd.native.stream import Stream, widen_pipe


class StreamReader:
    """Reads a stream, one thread at a time; ``stop`` makes ``read`` return in another thread.

    Reading a pipe locks it for as long as the copying takes, and whoever writes to it spins meanwhile, on a processor
    that has better things to do.  So what is in it is moved, which takes no time, into a pipe that nobody else knows.
    """

    def __init__(self, fd: int) -> None:
        """Read from a pipe or anything else that can be polled; it stays the caller's."""
        self.received_bytes = 0
        self.front = bytearray()
        pipe: tuple[int, int] | None = None
        with ExitStack() as opened:
            self._stop = os.eventfd(0, os.EFD_CLOEXEC)
            opened.callback(os.close, self._stop)
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                pipe = os.pipe2(os.O_CLOEXEC)
                for end in pipe:
                    opened.callback(os.close, end)
                for end in (fd, pipe[1]):
                    widen_pipe(end)
            self._opened = opened.pop_all()
        self._stream = Stream(fd, self._stop, pipe)

    def stop(self) -> None:
        """Make ``read`` return soon."""
        os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """Free what it holds; only while nothing is read."""
        self._opened.close()

    def read(self, buffer: memoryview) -> int:
        """Fill the buffer, unless the stream ends or is stopped before; return the bytes.

        Raises:
            ArchiveUnavailable: the stream cannot be read.
        """
        try:
            length = self._stream.read(buffer)
        except NativeError as error:
            raise ArchiveUnavailable(f"reading the image: {os.strerror(error.errno)}") from error
        if len(self.front) < PREFIX_BYTES:
            self.front += buffer[:min(length, PREFIX_BYTES - len(self.front))]
        self.received_bytes += length
        return length
