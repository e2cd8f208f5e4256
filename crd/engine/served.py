"""``checkpoint`` and ``restart`` as system calls of programs under the filter of ``crd.syscalls``.

What a call may do is up to who makes it: who has CAP_SYS_PTRACE, everything; others save what runs as their own user.
Errors are those of the specification, section 5.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from crd import syscalls
from crd.engine import api
from crd.engine.userspace.caller import Caller
from crd.errors import (
    AccessDenied,
    BadRequest,
    CrdError,
    FreezeTimeout,
    ImageSinkClosed,
    TargetGone,
    TargetNotFound,
    TargetUnsupported,
    TraceDenied,
    TracerBusy,
)
from crd.native.syscall import NR, pidfd_getfd, syscall
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.engine.crid import CridCounter
    from crd.native.notification import Notification
    from crd.target.model import Status

_CAP_SYS_PTRACE = 19
_ERRNO = {BadRequest: errno.EINVAL, AccessDenied: errno.EPERM, TraceDenied: errno.EPERM, TargetNotFound: errno.ESRCH,
          TargetGone: errno.ESRCH, TracerBusy: errno.EBUSY, FreezeTimeout: errno.EBUSY, ImageSinkClosed: errno.EPIPE}
_ERRNO_OF_OBSTACLE = {"fd": errno.EBADF, "file": errno.EBADF, "memory": errno.ENOSYS, "task.zombie": errno.EAGAIN,
                      "task.denied": errno.EPERM, "task.namespace": errno.EPERM, "task.kernel-thread": errno.EPERM}


def serve(listener: int, call: Notification, *, crids: CridCounter, options: api.CheckpointOptions) -> api.ServedCall:
    """Carry out a call and let it return; whatever fails is its result.

    Args:
        listener: it was received from; it stays the caller's.
        call: which waits.
        crids: where crids come from.
        options: how checkpoints are taken.
    """
    caller = Caller(listener, call)
    pid, message = 0, ""
    try:
        status = procfs.status(call.tid)
        pid = status.process_id
        result = _carried_out(pid, status, call, caller, crids, options)
    except CrdError as error:
        result, message = -_errno(error), error.message
    except OSError as error:
        result, message = -(error.errno or errno.EIO), str(error)
    caller.answer(result)
    return api.ServedCall(pid=pid, result=result, message=message)


def _carried_out(pid: int, status: Status, call: Notification, caller: Caller, crids: CridCounter,
                 options: api.CheckpointOptions) -> int:
    if call.architecture != syscalls.X86_64 or call.number != syscalls.NR_CHECKPOINT:
        raise OSError(errno.ENOSYS, f"call {call.number} is not one of ours")
    if flags := call.arguments[2]:
        raise BadRequest(f"flags {flags:#x}: only 0 is defined")
    with _descriptor(pid, call.number_at(1), os.O_WRONLY) as fd:
        target = _target(pid, call)
        if not _may_trace_all(pid, status):
            options = replace(options, only_uid=status.uids[1])
        if not caller.waits():
            raise TargetGone(f"thread {call.tid} was killed", tid=call.tid)
        return api.checkpoint(target, fd, crids=crids, options=options, caller=caller).crid


@contextmanager
def _descriptor(pid: int, fd: int, access: int) -> Iterator[int]:
    """Have a descriptor of the caller's.

    Raises:
        OSError: EBADF: it is not open, or not for this.
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


def _may_trace_all(pid: int, status: Status) -> bool:
    """Whether a process has the capability for it, and not just in a user namespace of its own."""
    return (bool(status.capabilities("Eff") >> _CAP_SYS_PTRACE & 1)
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


def _errno(error: CrdError) -> int:
    if isinstance(error, TargetUnsupported):
        code = error.reasons[0].code
        return _ERRNO_OF_OBSTACLE.get(code) or _ERRNO_OF_OBSTACLE.get(code.partition(".")[0]) or errno.EBUSY
    for kind, number in _ERRNO.items():
        if isinstance(error, kind):
            return number
    of_system = error.__cause__.errno if isinstance(error.__cause__, OSError) else error.details.get("errno")
    return int(of_system or errno.EIO)
