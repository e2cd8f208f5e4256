"""Who serves ``checkpoint`` and ``restart`` in the contract suite: each engine as a program would call it.

Whatever serves the calls raises OSError with the errno of the specification.  A new engine is a class like these and a
line in ``ENGINES``.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass, field
from signal import SIGKILL
from typing import TYPE_CHECKING, Any, Protocol

from crd.engine import api
from crd.engine.crid import CridCounter
from crd.engine.kernel.calls import KernelCalls
from crd.engine.kernel.table import named
from crd.errors import (
    AccessDenied,
    BadRequest,
    CrdError,
    ImageError,
    ImageSinkClosed,
    ImageSinkFull,
    ImageTruncated,
    TargetGone,
    TargetNotFound,
    TargetUnsupported,
    TraceDenied,
)
from tests.support.standin_kernel import StandInKernel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_ERRNOS: list[tuple[type[CrdError], int]] = [
    (BadRequest, errno.EINVAL), (TargetNotFound, errno.ESRCH), (TargetGone, errno.ESRCH), (TraceDenied, errno.EPERM),
    (AccessDenied, errno.EPERM), (ImageSinkClosed, errno.EPIPE), (ImageSinkFull, errno.ENOSPC),
    (ImageTruncated, errno.EPIPE), (ImageError, errno.EINVAL)]


def as_errno(error: CrdError) -> OSError:
    """Return what a caller of the system call would have got."""
    cause = error.__cause__.errno if isinstance(error.__cause__, OSError) else 0
    if isinstance(error, TargetUnsupported) and {reason.code for reason in error.reasons} == {"task.zombie"}:
        return OSError(errno.EAGAIN, error.message)
    known = next((number for kind, number in _ERRNOS if isinstance(error, kind)), 0)
    return OSError(error.details.get("errno") or known or cause or errno.EIO, error.message)


class CallEngine(Protocol):
    """Makes the calls; ``release`` ends what it left."""

    serves_self: bool
    """Whether a task can ask for its own image."""

    def checkpoint(self, pid: int, fd: int, flags: int = 0) -> int: ...
    def checkpoint_self(self, fd: int) -> int: ...
    def restart(self, fd: int, flags: int = 0) -> int: ...
    def release(self) -> None: ...


@dataclass
class UserspaceEngine:
    """crd's own engine, in this process."""

    directory: Path
    serves_self: bool = False
    restarted: list[int] = field(default_factory=list)

    def checkpoint(self, pid: int, fd: int, flags: int = 0) -> int:
        return self._made(lambda: api.checkpoint(pid, fd, flags, crids=CridCounter(self.directory / "crid"),
                                                 options=api.CheckpointOptions(engine="userspace")).crid)

    def checkpoint_self(self, fd: int) -> int:
        raise OSError(errno.ENOSYS, "a process cannot trace itself")

    def restart(self, fd: int, flags: int = 0) -> int:
        self.restarted.append(self._made(lambda: api.restart(fd, flags, options=api.RestartOptions(
            pids=api.Pids.NEW)).root_pid))
        return self.restarted[-1]

    def release(self) -> None:
        for pid in self.restarted:
            with suppress(ProcessLookupError):
                os.kill(pid, SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)

    @staticmethod
    def _made(call: Callable[[], int]) -> int:
        try:
            return call()
        except CrdError as error:
            raise as_errno(error) from error


class KernelEngine:
    """The kernel engine with a stand-in for a kernel of one release."""

    serves_self = True

    def __init__(self, directory: Path, linux_cr: str) -> None:
        self.linux_cr = linux_cr
        self.crids = CridCounter(directory / "crid")
        self.kernel = StandInKernel(named(linux_cr, "x86_64"))
        self.restarted: list[int] = []

    def checkpoint(self, pid: int, fd: int, flags: int = 0) -> int:
        options = api.CheckpointOptions(engine="kernel", linux_cr=self.linux_cr)
        return self._made(lambda: api.checkpoint(pid, fd, flags, crids=self.crids, options=options).crid)

    def checkpoint_self(self, fd: int) -> int:
        return self._made(lambda: KernelCalls(self.kernel.numbers).checkpoint(0, fd))

    def restart(self, fd: int, flags: int = 0) -> int:
        options = api.RestartOptions(linux_cr=self.linux_cr)
        result = self._made(lambda: api.restart(fd, flags, options=options))
        self.restarted += result.pids.values()
        return result.root_pid

    def release(self) -> None:
        for pid in self.restarted:
            with suppress(ProcessLookupError):
                os.kill(pid, SIGKILL)

    def _made(self, call: Callable[[], Any]) -> Any:
        try:
            return self.kernel.run(call)
        except CrdError as error:
            raise as_errno(error) from error


ENGINES: dict[str, Callable[[Path], CallEngine]] = {
    "userspace": UserspaceEngine,
    "kernel-3-arguments": lambda directory: KernelEngine(directory, "387/388/3"),
    "kernel-3.0": lambda directory: KernelEngine(directory, "3.0"),
}
