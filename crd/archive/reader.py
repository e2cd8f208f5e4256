"""A descriptor that a stream is read from, and that can be given up while nobody writes."""

from __future__ import annotations

import fcntl
import os
import select
import stat
from contextlib import suppress

from crd.errors import ArchiveUnavailable
from crd.image.generations import PREFIX_BYTES

_F_SETPIPE_SZ, _PIPE_BYTES = 1031, 1 << 20


class StreamReader:
    """Reads a stream, one thread at a time; ``stop`` makes ``read`` return in another thread.

    Reading a pipe locks it for as long as the copying takes, and whoever writes to it spins meanwhile, on a processor
    that has better things to do.  So what is in it is moved, which takes no time, into a pipe that nobody else knows.
    """

    def __init__(self, fd: int) -> None:
        """Read from a pipe or anything else that can be polled; it stays the caller's."""
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._poll.register(self._stop, select.POLLIN)
        self._pipe: tuple[int, int] | None = None
        self._moved = 0  # bytes in our pipe
        self.received_bytes = 0
        self.front = bytearray()
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            self._pipe = os.pipe2(os.O_CLOEXEC)
            for end in (fd, self._pipe[1]):
                with suppress(OSError):
                    fcntl.fcntl(end, _F_SETPIPE_SZ, _PIPE_BYTES)

    def stop(self) -> None:
        """Make ``read`` return soon."""
        os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """Free what it holds; only while nothing is read."""
        for fd in (self._stop, *(self._pipe or ())):
            os.close(fd)

    def read(self, buffer: memoryview) -> int:
        """Fill the buffer, unless the stream ends or is stopped before; return the bytes.

        Raises:
            ArchiveUnavailable: the stream cannot be read.
        """
        filled = 0
        try:
            while filled < len(buffer) and (length := self._read_some(buffer[filled:])):
                if len(self.front) < PREFIX_BYTES:
                    self.front += buffer[filled:filled + min(length, PREFIX_BYTES - len(self.front))]
                filled += length
                self.received_bytes += length
        except OSError as error:
            raise ArchiveUnavailable(f"reading the image: {error.strerror}") from error
        return filled

    def _read_some(self, buffer: memoryview) -> int:
        while not self._moved:
            if any(fd == self._stop for fd, _ in self._poll.poll()):
                return 0
            try:
                if not self._pipe:
                    return os.readv(self._fd, [buffer])
                self._moved = os.splice(self._fd, self._pipe[1], _PIPE_BYTES)
            except BlockingIOError:
                continue
            if not self._moved:
                return 0
        assert self._pipe  # noqa: S101
        length = os.readv(self._pipe[0], [buffer])
        self._moved -= length
        return length
