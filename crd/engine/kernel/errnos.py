"""What the errors of the two calls mean (spec section 5, and D11 and D16 of the real kernels).

``calls.py`` refuses wrong flags and descriptors before the kernel does, so that each errno has one meaning here.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from crd.errors import (
    CrdError,
    EngineError,
    ImageCorrupt,
    ImageSinkClosed,
    ImageSinkFull,
    ImageTruncated,
    Obstacle,
    ResourceChanged,
    RestartError,
    RestartUnsupported,
    TargetBusy,
    TargetNotFound,
    TargetUnsupported,
    TraceDenied,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_OTHER_RELEASE = "Compare engine.linux_cr with the patches of this kernel."


def checkpoint_error(number: int, pid: int) -> CrdError:
    """Return what an errno of checkpoint says of a task."""
    kind, what, hint = _CHECKPOINT.get(number, (EngineError, f"the checkpoint failed: {os.strerror(number)}", ""))
    return kind(f"task {pid}: {what}", hint=hint, pid=pid, errno=number)


def restart_error(number: int) -> CrdError:
    """Return what an errno of restart says of an image."""
    kind, what, hint = _RESTART.get(number, (RestartError, f"the restart failed: {os.strerror(number)}", ""))
    return kind(what, hint=hint, errno=number)


def _unsupported(code: str, reason: str, remedy: str) -> tuple[Callable[..., CrdError], str, str]:
    def refuse(message: str, **details: Any) -> CrdError:
        return TargetUnsupported(message, reasons=[Obstacle(code, f"pid {details['pid']}", reason, remedy)], **details)

    return refuse, reason, remedy


def _denied(message: str, **details: Any) -> CrdError:
    return TraceDenied(message, operation="Linux-CR", **details)


_FULL = ImageSinkFull, "there is no space left for the image", "Free some space, or write elsewhere."

_CHECKPOINT: dict[int, tuple[Callable[..., CrdError], str, str]] = {
    errno.ESRCH: (TargetNotFound, "there is none, or it has ended", ""),
    errno.EPERM: (_denied, "it may not be traced, or a task of its tree is in other namespaces", ""),
    errno.EACCES: (_denied, "it may not be traced", ""),
    errno.EBUSY: (TargetBusy, "it is traced, changes, or shares with others what the image would hold", "Try again."),
    errno.EAGAIN: _unsupported("task.zombie", "a descendant has ended and was not waited for",
                               "let its parent wait for it"),
    errno.ENOSYS: _unsupported("memory.unsupported", "a memory area is shared, huge or of a device, which this kernel "
                               "does not save", "use private memory"),
    errno.EBADF: _unsupported("fd.unsupported", "an open descriptor is of a kind that this kernel does not save",
                              "close it before the checkpoint"),
    errno.EINVAL: (EngineError, "the kernel refuses the call: it is no whole container, or the call of another release",
                   _OTHER_RELEASE),
    errno.EPIPE: (ImageSinkClosed, "nobody reads the image any more", ""),
    errno.ENOSPC: _FULL, errno.EDQUOT: _FULL, errno.EFBIG: _FULL,
}

_RESTART: dict[int, tuple[Callable[..., CrdError], str, str]] = {
    errno.EINVAL: (ImageCorrupt, "the kernel refuses the image: it is damaged, or of another kernel or processor",
                   "crd inspect shows what it holds."),
    errno.EPIPE: (ImageTruncated, "the image ends too early for the kernel", ""),
    errno.ENOSYS: (RestartUnsupported, "the kernel cannot restore what the image holds", ""),
    errno.EPERM: (_denied, "the kernel does not let crd restart the image", ""),
    errno.ESRCH: (RestartError, "the kernel does not find all the tasks of the image", _OTHER_RELEASE),
    errno.EAGAIN: (RestartError, "the first task, or another one, gave up", "Try again."),
    errno.EBUSY: (RestartError, "a task is traced, or part of another restart", "Try again."),
    errno.ENOENT: (ResourceChanged, "a file of the image is missing", "Put it back, or restart another image."),
    errno.ENOTDIR: (ResourceChanged, "a file of the image has lost its directory", ""),
    errno.ETXTBSY: (ResourceChanged, "a file of the image is being executed", ""),
}
