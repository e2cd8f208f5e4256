"""``checkpoint`` and ``restart`` as system calls of programs under the filter of ``crd.syscalls``.

Who has CAP_SYS_PTRACE saves whom it likes, others what runs as their own user.
A restart is for who has CAP_SYS_ADMIN, since it makes whatever an image says.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from crd import syscalls
from crd.engine import api
from crd.engine.errnos import errno_of
from crd.engine.stream import DescriptorSource
from crd.engine.userspace.caller import Caller
from crd.errors import AccessDenied, BadRequest, CrdError, NativeError, PidInUse, TargetGone, TargetNotFound
from crd.image.reader import ImageReader
from crd.image.verify import verified
from crd.native.syscall import NR, pidfd_getfd, syscall
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crd.engine.crid import CridCounter
    from crd.native.notification import Notification
    from crd.target.model import Status

_CAP_SYS_PTRACE, _CAP_SYS_ADMIN = 19, 21
_HOLD_SECONDS = 10.0
_LISTENER = "anon_inode:seccomp notify"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """How calls are carried out.

    Attributes:
        crids: where crids come from.
        options: how checkpoints are taken.
        confirm: as of ``api.restart``.
    """

    crids: CridCounter
    options: api.CheckpointOptions
    confirm: Callable[[api.RestartResult], None]


def fetched_listener(pid: int, fd: int) -> int:
    """Return our own descriptor of a listener that another process holds.

    Raises:
        BadRequest: it has no such descriptor, or that is no listener.
    """
    try:
        pidfd = syscall(NR.PIDFD_OPEN, pid, 0)
        try:
            listener = pidfd_getfd(pidfd, fd)
        finally:
            os.close(pidfd)
    except NativeError as error:
        raise BadRequest(f"descriptor {fd} of process {pid}: {error.message}") from error
    if os.readlink(f"/proc/self/fd/{listener}") != _LISTENER:
        os.close(listener)
        raise BadRequest(f"descriptor {fd} of process {pid} is no listener of seccomp(2)")
    return listener


def serve(listener: int, call: Notification, service: Service) -> api.ServedCall:
    """Carry out a call and let it return; whatever fails is its result.

    Args:
        listener: it was received from; it stays the caller's.
        call: which waits.
        service: how.
    """
    caller = Caller(listener, call)
    pid, message = 0, ""
    try:
        status = procfs.status(call.tid)
        pid = status.process_id
        result = _carried_out(pid, status, call, caller, service)
    except CrdError as error:
        result, message = -errno_of(error), error.message
    except OSError as error:
        result, message = -(error.errno or errno.EIO), str(error)
    caller.answer(result)
    return api.ServedCall(pid=pid, result=result, message=message)


def _carried_out(pid: int, status: Status, call: Notification, caller: Caller, service: Service) -> int:
    if call.architecture != syscalls.X86_64 or call.number not in {syscalls.NR_CHECKPOINT, syscalls.NR_RESTART}:
        raise OSError(errno.ENOSYS, f"call {call.number} is not one of ours")
    if flags := call.arguments[2]:
        raise BadRequest(f"flags {flags:#x}: only 0 is defined")
    saves = call.number == syscalls.NR_CHECKPOINT
    with _descriptor(pid, call.number_at(1), os.O_WRONLY if saves else os.O_RDONLY) as fd:
        options = service.options
        target = _target(pid, call) if saves else 0
        if saves and not _is_capable(pid, status, _CAP_SYS_PTRACE):
            options = replace(options, only_uid=status.uids[1])
        if not saves and not _is_capable(pid, status, _CAP_SYS_ADMIN):
            raise AccessDenied(f"process {pid} may not restart images")
        if not caller.waits():
            raise TargetGone(f"thread {call.tid} was killed", tid=call.tid)
        if saves:
            return api.checkpoint(target, fd, crids=service.crids, options=options, caller=caller).crid
        _replace(pid, fd, caller, service)
        return 0


def _replace(pid: int, fd: int, caller: Caller, service: Service) -> None:
    """Have a process replaced by an image.

    It ends when the tasks are made.  Only if it has a number of theirs it has to end before: then the image is read
    through first, which must be a file.

    Raises:
        CrdError: it cannot be restarted.
    """
    options = api.RestartOptions(served=True)
    begin = _position(fd)

    def confirm(ready: api.RestartResult) -> None:
        caller.hold(time.monotonic() + _HOLD_SECONDS)
        service.confirm(ready)

    try:
        api.restart(fd, options=options, confirm=confirm)
        caller.end()
    except PidInUse as error:
        if begin is None or not _has_number(pid, error.details["pid"]):
            raise
        os.lseek(fd, begin, os.SEEK_SET)
        for _ in verified(ImageReader(DescriptorSource(fd))):
            pass
        os.lseek(fd, begin, os.SEEK_SET)
        caller.hold(time.monotonic() + _HOLD_SECONDS)
        caller.end()
        api.restart(fd, options=options, confirm=service.confirm)


def _position(fd: int) -> int | None:
    """Return where a file is being read; None of a pipe or socket."""
    try:
        return os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:
        return None


def _has_number(pid: int, number: int) -> bool:
    """Whether a number is that of a thread of a process."""
    try:
        return procfs.status(number).process_id == pid
    except CrdError:
        return False


@contextmanager
def _descriptor(pid: int, fd: int, access: int) -> Iterator[int]:
    """Have a descriptor of the caller's.

    Raises:
        NativeError, OSError: EBADF: it is not open, or not for this.
    """
    pidfd = syscall(NR.PIDFD_OPEN, pid, 0)
    try:
        ours = pidfd_getfd(pidfd, fd)
    finally:
        os.close(pidfd)
    try:
        flags = fcntl.fcntl(ours, fcntl.F_GETFL)
        if flags & os.O_PATH or flags & os.O_ACCMODE not in {access, os.O_RDWR}:
            raise OSError(errno.EBADF, f"descriptor {fd} is not open for this")
        yield ours
    finally:
        os.close(ours)


def _is_capable(pid: int, status: Status, capability: int) -> bool:
    """Whether a process has a capability, and not just in a user namespace of its own."""
    return (bool(status.capabilities("Eff") >> capability & 1)
            and procfs.namespaces(pid).get("user") == procfs.namespaces(os.getpid()).get("user"))


def _target(caller: int, call: Notification) -> int:
    """Return the process that a call names; 0 is the one that makes it.

    Raises:
        TargetNotFound: there is none.
        AccessDenied: the caller counts processes in a namespace of its own.
    """
    pid = call.number_at(0)
    if pid == 0:
        return caller
    if procfs.namespaces(caller).get("pid") != procfs.namespaces(os.getpid()).get("pid"):
        raise AccessDenied(f"process {caller} names processes of its own pid namespace")
    try:
        return procfs.status(pid).process_id if pid > 0 else 0
    except TargetGone as error:
        raise TargetNotFound(f"there is no process {pid}", pid=pid) from error
