"""What is in flight in a pipe: copied without taking it out, and put back."""

from __future__ import annotations

import fcntl
import os
import termios
from contextlib import suppress
from typing import TYPE_CHECKING

from crd.errors import NativeError, RestartUnsupported
from crd.native.syscall import syscall

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.image.objects import Pipe, PipeData

_F_SETPIPE_SZ = 1031
_TEE, _SPLICE_F_NONBLOCK = 276, 2
_SPLICE_BYTES = 64 << 10


def readable(end: int) -> int:
    """Return how many bytes are in flight."""
    return int.from_bytes(fcntl.ioctl(end, termios.FIONREAD, bytes(4)), "little")


def in_flight(read_end: int, capacity: int) -> list[bytes]:
    """Copy what is in a pipe without taking anything out (tee(2)); packets one each."""
    ours_read, ours_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.fcntl(ours_write, _F_SETPIPE_SZ, capacity)
        with suppress(NativeError):  # EAGAIN: it is empty
            syscall(_TEE, read_end, ours_write, capacity, _SPLICE_F_NONBLOCK)
        chunks = []
        with suppress(BlockingIOError):
            while chunk := os.read(ours_read, _SPLICE_BYTES):
                chunks.append(chunk)
    finally:
        os.close(ours_read)
        os.close(ours_write)
    return chunks


def fill(write_end: int, pipe: Pipe, data: Sequence[PipeData]) -> None:
    """Give a pipe its capacity and what was in flight.

    Args:
        write_end: which does not block.
        pipe: that it was.
        data: that was in it.

    Raises:
        RestartUnsupported: the capacity exceeds what an unprivileged pipe may have.
    """
    try:
        fcntl.fcntl(write_end, _F_SETPIPE_SZ, pipe.capacity_bytes)
    except OSError as error:
        raise RestartUnsupported(f"a pipe of {pipe.capacity_bytes} bytes: {error.strerror}",
                                 hint="Raise /proc/sys/fs/pipe-max-size.") from error
    for chunk in data:
        fcntl.fcntl(write_end, fcntl.F_SETFL, os.O_NONBLOCK | (os.O_DIRECT if chunk.packet else 0))
        if os.write(write_end, chunk.data) != len(chunk.data):
            raise RestartUnsupported("the data in flight do not fit the pipe")
