"""Who serves ``checkpoint`` and ``restart`` in the contract suite: each engine as a program would call it.

Whatever serves the calls raises OSError with the errno of the specification.  A new engine is a class like these and a
line in ``ENGINES``.
"""

from __future__ import annotations

import errno
import os
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from signal import SIGKILL
from typing import TYPE_CHECKING, Any, Protocol

from crd import syscalls
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
from tests.engine.callers import DOES_AS_TOLD
from tests.support.served import Served, compiled
from tests.support.standin_kernel import StandInKernel
from tests.support.victims import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
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
    """Makes the calls; ``release`` ends what it left.

    ``returned_in_the_copy`` restarts the image of the last caller of ``checkpoint_self``; the call returns there, too.
    """

    serves_self: bool
    """Whether a task can ask for its own image."""

    def checkpoint(self, pid: int, fd: int, flags: int = 0) -> int: ...
    def checkpoint_self(self, fd: int) -> int: ...
    def returned_in_the_copy(self, fd: int) -> int: ...
    def restart(self, fd: int, flags: int = 0) -> int: ...
    def release(self) -> None: ...


def _end(pids: Iterable[int]) -> None:
    """Kill restarted tasks, and wait for those that are children of ours."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


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

    def returned_in_the_copy(self, fd: int) -> int:
        raise NotImplementedError

    def restart(self, fd: int, flags: int = 0) -> int:
        self.restarted.append(self._made(lambda: api.restart(fd, flags, options=api.RestartOptions(
            pids=api.Pids.NEW)).root_pid))
        return self.restarted[-1]

    def release(self) -> None:
        _end(self.restarted)

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

    def returned_in_the_copy(self, fd: int) -> int:
        self.kernel.restored = True
        with open(os.devnull, "wb") as null:
            return self.checkpoint_self(null.fileno())

    def restart(self, fd: int, flags: int = 0) -> int:
        options = api.RestartOptions(linux_cr=self.linux_cr)
        result = self._made(lambda: api.restart(fd, flags, options=options))
        self.restarted += result.pids.values()
        return result.root_pid

    def release(self) -> None:
        _end(self.restarted)

    def _made(self, call: Callable[[], Any]) -> Any:
        try:
            return self.kernel.run(call)
        except CrdError as error:
            raise as_errno(error) from error


class ServedCalls:
    """The calls of a program under the filter of ``crctl run``; it is in C and knows nothing but syscall(2)."""

    serves_self = True

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "callers"
        self.directory.mkdir()
        self.program = compiled(self.directory, DOES_AS_TOLD)
        self.callers: list[Served] = []
        self.restarted: list[int] = []

    def checkpoint(self, pid: int, fd: int, flags: int = 0) -> int:
        return self._called(syscalls.NR_CHECKPOINT, pid, fd, flags)

    def checkpoint_self(self, fd: int) -> int:
        return self.checkpoint(0, fd)

    def returned_in_the_copy(self, fd: int) -> int:
        caller, known = self.callers[-1], self._results()
        caller.kill()
        caller.restarted_as(api.restart(fd).root_pid)
        until("the return in the copy", lambda: len(self._results()) > len(known))
        return self._results()[len(known)][0]  # it goes on with the commands that came afterwards

    def restart(self, fd: int, flags: int = 0) -> int:
        self._called(syscalls.NR_RESTART, 0, fd, flags)
        caller = self.callers.pop()
        assert os.waitstatus_to_exitcode(os.waitpid(caller.pid, 0)[1]) == 0
        caller.close()
        for listener in caller.next_listeners:
            os.close(listener)
        self.restarted.append(caller.replaced_by.root_pid)
        return self.restarted[-1]

    def release(self) -> None:
        for caller in self.callers:
            caller.close()
        _end(self.restarted)

    def _called(self, number: int, first: int, fd: int, flags: int) -> int:
        """Have a program make a call, serve it, and return what it has seen; 0 of a restart that has replaced it."""
        if not self.callers:
            for name in ("commands", "results"):
                (self.directory / name).write_bytes(b"")
            self.callers.append(Served([self.program, str(os.getpid())], self.directory))
        known = len(self._results())
        with (self.directory / "commands").open("ab", buffering=0) as commands:
            commands.write(struct.pack("=qqqQq", number, first, fd, flags, _is_open(fd)))
        done = self.callers[-1].serve()
        if number == syscalls.NR_RESTART and done.result == 0:
            return 0
        until("the return of the call", lambda: len(self._results()) > known)
        result, error = self._results()[-1]
        if result < 0:
            raise OSError(error, done.message)
        return result

    def _results(self) -> list[tuple[int, int]]:
        data = (self.directory / "results").read_bytes()
        return [*struct.iter_unpack("=qq", data[:len(data) // 16 * 16])]


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


ENGINES: dict[str, Callable[[Path], CallEngine]] = {
    "userspace": UserspaceEngine,
    "served": ServedCalls,
    "kernel-3-arguments": lambda directory: KernelEngine(directory, "387/388/3"),
    "kernel-3.0": lambda directory: KernelEngine(directory, "3.0"),
}
