"""Errors as a system call tells them: those of the specification, section 5, and of write(2) and open(2)."""

from __future__ import annotations

import errno

from crd import errors

_OF_ERROR: dict[type[errors.CrdError], int] = {
    errors.BadRequest: errno.EINVAL,
    errors.AccessDenied: errno.EPERM,
    errors.TraceDenied: errno.EPERM,
    errors.TargetNotFound: errno.ESRCH,
    errors.TargetGone: errno.ESRCH,
    errors.TracerBusy: errno.EBUSY,
    errors.FreezeTimeout: errno.EBUSY,
    errors.ImageSinkClosed: errno.EPIPE,
    errors.ImageTruncated: errno.EPIPE,
    errors.ImageError: errno.EINVAL,
    errors.PidInUse: errno.EBUSY,
    errors.RestartUnsupported: errno.EINVAL,
    errors.ResourceChanged: errno.ENOENT,
}
_OF_OBSTACLE = {
    "fd": errno.EBADF,
    "file": errno.EBADF,
    "memory": errno.ENOSYS,
    "task.zombie": errno.EAGAIN,
    "task.denied": errno.EPERM,
    "task.namespace": errno.EPERM,
    "task.kernel-thread": errno.EPERM,
}
"""By code, or what stands before its dot; EBUSY for all others."""


def errno_of(error: errors.CrdError) -> int:
    """Return the number for an error; EIO where nothing fits better."""
    if isinstance(error, errors.TargetUnsupported):
        code = error.reasons[0].code
        return _OF_OBSTACLE.get(code) or _OF_OBSTACLE.get(code.partition(".")[0]) or errno.EBUSY
    of_system = error.__cause__.errno if isinstance(error.__cause__, OSError) else error.details.get("errno")
    known = next((number for kind, number in _OF_ERROR.items() if isinstance(error, kind)), None)
    if known is None or isinstance(error, errors.ResourceChanged):
        return int(of_system or known or errno.EIO)
    return known
