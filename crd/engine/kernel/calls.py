"""The two system calls (spec section 1)."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from typing import TYPE_CHECKING

from crd.engine.kernel.errnos import checkpoint_error, restart_error
from crd.errors import BadRequest, NativeError
from crd.native.syscall import syscall

if TYPE_CHECKING:
    from crd.engine.kernel.table import CallNumbers


class KernelCalls:
    """``checkpoint`` and ``restart`` of the running kernel; the details of every error carry the errno."""

    def __init__(self, numbers: CallNumbers) -> None:
        """Use numbers that are proven to be the calls' (``proof.calls_of``)."""
        self.numbers = numbers

    def checkpoint(self, pid: int, fd: int, flags: int = 0) -> int:
        """Have the kernel write the image of a task and its descendants.

        Args:
            pid: of a frozen task; 0: the calling thread.
            fd: open for writing.
            flags: must be 0.

        Returns:
            The kernel's own number of the image, > 0; or 0: this is the copy, which has just been restarted.

        Raises:
            BadRequest: flags are not 0, or the descriptor is not open for writing.
            CrdError: see ``errnos.checkpoint_error``.
        """
        _check(fd, flags, os.O_WRONLY)
        # by its number in its own namespace: v13 knows no 0, and v14-rc2 takes the global number for it
        pid = pid or threading.get_native_id()
        call = self.numbers
        try:
            return syscall(call.checkpoint, *call.words(pid, fd, call.checkpoint_flags))
        except NativeError as error:
            raise checkpoint_error(error.errno, pid) from error

    def restart(self, crid: int, fd: int, flags: int = 0, *, kernel_flags: int = 0) -> int:
        """Become a task of an image; this does not return if the kernel restores more than names.

        Args:
            crid: the pid of the first task: every task of the new tree makes this call with it, or, if the restart is
                coordinated, its parent does, and they call with 0.
            fd: open for reading.
            flags: must be 0.
            kernel_flags: those of the release (``table.py``).

        Returns:
            0, in the old program: the caller is the coordinator, or the kernel has patch 04 alone.

        Raises:
            BadRequest: flags are not 0, or the descriptor is not open for reading.
            CrdError: see ``errnos.restart_error``; the caller is as it was.
        """
        _check(fd, flags, os.O_RDONLY)
        call = self.numbers
        try:
            return syscall(call.restart, *call.words(crid, fd, kernel_flags))
        except NativeError as error:
            raise restart_error(error.errno) from error


def _check(fd: int, flags: int, access: int) -> None:
    if flags:
        raise BadRequest(f"flags {flags:#x}: only 0 is defined", errno=errno.EINVAL)
    try:
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except (OSError, ValueError) as error:
        raise BadRequest(f"descriptor {fd} is not open", errno=errno.EBADF) from error
    if mode not in {access, os.O_RDWR}:
        raise BadRequest(f"descriptor {fd} is not open for {'writing' if access else 'reading'}", errno=errno.EBADF)
