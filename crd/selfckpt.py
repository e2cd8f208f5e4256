"""``checkpoint`` and ``restart`` for programs that ``crctl run`` started; for C there is ``crd.h``.

::

    with open("image", "wb") as image:
        crid = selfckpt.checkpoint(image.fileno())

``python3 -m crd.selfckpt`` prints the directory of ``crd.h``.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from crd import syscalls

INCLUDE = Path(__file__).parent / "include"
"""The directory of ``crd.h``."""


def checkpoint(fd: int, pid: int = 0) -> int:
    """Write an image of a process (0: this one) and its descendants to a descriptor.

    Returns:
        Its crid, above 0; or 0: this is the process that a restart has made of the image.

    Raises:
        OSError: EBADF: fd is not open for writing, or the process has something open that cannot be saved; ESRCH,
            EPERM: there is no such process, or it is not yours; EBUSY: it cannot be saved as it is now; EPIPE, ENOSPC,
            EIO: the image could not be written; ENOSYS: this program was not started by ``crctl run``, the daemon is
            away, or its memory cannot be saved.  ``crctl check PID`` tells more.
    """
    return syscalls.syscall(syscalls.NR_CHECKPOINT, pid, fd, 0)


def restart(fd: int, crid: int = 0) -> NoReturn:
    """Become what is in the image that is read from a descriptor.

    Raises:
        OSError: it cannot be restarted; this program goes on.
    """
    syscalls.syscall(syscalls.NR_RESTART, crid, fd, 0)
    raise AssertionError


if __name__ == "__main__":
    print(INCLUDE)  # noqa: T201
