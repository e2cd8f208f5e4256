"""``checkpoint`` and ``restart`` for programs that ``crctl run`` started; for C there is ``crd.h``.  ``save`` for any.

::

    with open("image", "wb") as image:
        crid = selfckpt.checkpoint(image.fileno())

``python3 -m crd.selfckpt`` prints the directory of ``crd.h``.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from crd import syscalls

INCLUDE = Path(__file__).parent / "include"
"""The directory of ``crd.h``."""
_FD_MIN = 512
"""Of a connection that is closed in a restarted process, where nobody else is given that number in the meantime."""


def checkpoint(fd: int, pid: int = 0) -> int:
    """Write an image of a process (0: this one) and its descendants to a descriptor.

    A signal may come before it is this call's turn: the call is made again, unless its handler raises (PEP 475).

    Returns:
        Its crid, above 0; or 0: this is the process that a restart has made of the image.

    Raises:
        OSError: EBADF: fd is not open for writing, or the process has something open that cannot be saved; ESRCH,
            EPERM: there is no such process, or it is not yours; EBUSY: it cannot be saved as it is now; EPIPE, ENOSPC,
            EIO: the image could not be written; ENOSYS: this program was not started by ``crctl run``, the daemon is
            away, or its memory cannot be saved.  ``crctl check PID`` tells more.
    """
    while True:
        with suppress(InterruptedError):
            return syscalls.syscall(syscalls.NR_CHECKPOINT, pid, fd, 0)


def restart(fd: int, crid: int = 0) -> NoReturn:
    """Become what is in the image that is read from a descriptor.

    Raises:
        OSError: it cannot be restarted; this program goes on.
    """
    while True:
        with suppress(InterruptedError):
            syscalls.syscall(syscalls.NR_RESTART, crid, fd, 0)


def save(*, tag: str | None = None, socket: Path | None = None) -> int:
    """Have the daemon take an image of this process and its descendants into its archive; ``crctl run`` is not needed.

    Args:
        tag: a word to find the image by.
        socket: of the daemon, if it is not the usual one.

    Returns:
        Its crid, above 0; or 0: this is the process that a restart has made of the image.

    Raises:
        CrdError: there is no image, and why.
    """
    from crd.api.client import Client
    from crd.errors import DaemonUnavailable

    start_time = _start_time()
    with Client(socket) as daemon:
        daemon.move(_FD_MIN)
        try:
            *_, last = daemon.stream("Checkpoint", pid=os.getpid(), tag=tag, connection=daemon.fileno())
        except DaemonUnavailable:
            if _start_time() == start_time:
                raise
            daemon.forget()
            return 0
    return int(last["image"]["crid"])


def _start_time() -> bytes:
    """Return when this process began, which a restart changes (field 22 of proc_pid_stat(5))."""
    return Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[19]


if __name__ == "__main__":
    print(INCLUDE)  # noqa: T201
