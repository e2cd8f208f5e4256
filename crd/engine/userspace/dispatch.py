"""System calls that go to a handler of the program (PR_SET_SYSCALL_USER_DISPATCH): Wine, and emulators of its kind.

A byte of the program says whether a thread's calls go there just now.  If they do, so would those of a stub.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.engine.userspace.fds.kind import TryLaterError
from crd.errors import NativeError, Obstacle, RestartUnsupported
from crd.image.profile import Dispatch
from crd.native import tracee

if TYPE_CHECKING:
    from crd.engine.userspace.freeze import Frozen
    from crd.native.threads import ThreadGroup

_ALLOW = b"\0"  # SYSCALL_DISPATCH_FILTER_ALLOW


def obstructed(state: Frozen) -> int:
    """Return a stopped thread that can make no system call of ours; 0 if all can."""
    for tid in state.group.dispatched():
        _mode, selector, *_ = state.group.state(tid).dispatch
        try:
            if not selector or state.memory.read(selector, 1) != _ALLOW:
                return tid
        except NativeError:  # nothing is mapped there: its next call kills it
            return tid
    return 0


def check(state: Frozen) -> None:
    """Make sure that stubs can run in all threads of a stopped process.

    Raises:
        TryLaterError: one of them hands its system calls to the program just now.
    """
    if tid := obstructed(state):
        raise TryLaterError(Obstacle(
            "task.dispatch", f"thread {tid}", "hands its system calls to a handler of the program just now "
            "(PR_SET_SYSCALL_USER_DISPATCH), and those of crd would go there, too",
            "Try again when it waits for something."))


def dump(group: ThreadGroup, tid: int) -> Dispatch | None:
    """Return what a thread has asked for, if it has; it was stopped, and may run again."""
    mode, selector, offset, length = group.state(tid).dispatch
    return Dispatch(tid=tid, mode=mode, selector=selector, offset=offset, bytes=length) if mode else None


def restart(record: Dispatch, tid: int) -> None:
    """Have it again, when all is done that needs system calls; raises RestartUnsupported."""
    try:
        tracee.set_dispatch(tid, record.mode, record.selector, record.offset, record.bytes)
    except NativeError as error:
        raise RestartUnsupported(f"thread {record.tid} handles its system calls itself: {error.message}",
                                 hint="Restart it on Linux 6.4 or newer.") from error
