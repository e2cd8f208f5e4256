"""The two tasks that a snapshot stub makes, followed from the target's clone(2) on (``csrc/arch/x86_64/stubs.S``)."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from crd.errors import NativeError, TraceeGone
from crd.native import tracee

if TYPE_CHECKING:
    from crd.native.tracee import Stop

_FOLLOW = tracee.OPTION_TRACESYSGOOD | tracee.OPTION_TRACEVFORK | tracee.OPTION_TRACECLONE


class Family:
    """The middle task, which makes the child and ends, and the child; both are tracees of ours from their beginning.

    Attributes:
        child: its pid, 0 = there is none.
        errno: why there is none.
    """

    def __init__(self) -> None:
        self._middle = 0
        self.child = 0
        self.errno = 0

    def make(self, target: int) -> bool:
        """Take the target from the entry to the exit of its clone; return whether there is a middle task to reap.

        Raises:
            TraceeGone: the target ended.
        """
        tracee.set_options(target, _FOLLOW)
        tracee.to_syscall(target)
        stop = tracee.wait(target)
        made = stop.event == tracee.EVENT_VFORK
        if made:
            self._middle = tracee.event_message(target)
            tracee.to_syscall(target)
            self._make_child()
            stop = tracee.wait(target)
        if stop.ended:
            raise TraceeGone(f"task {target} ended", tid=target)
        if not made:
            self.errno = -tracee.get_registers(target).result
        tracee.set_options(target, tracee.OPTION_TRACESYSGOOD)
        return made

    def _make_child(self) -> None:
        """Let the middle task run to its end."""
        middle = self._middle
        tracee.wait(middle)
        while not (stop := _go_on(middle)).ended:
            if stop.event == tracee.EVENT_CLONE:
                self.child = tracee.event_message(middle)
                tracee.wait(self.child)
                tracee.set_options(self.child, tracee.OPTION_EXITKILL | tracee.OPTION_TRACESYSGOOD)
        self._middle = 0
        self.errno = stop.signal if os.WIFEXITED(stop.status) else errno.EINTR

    def kill(self) -> None:
        """End those that there are."""
        for pid in filter(None, (self._middle, self.child)):
            with suppress(ProcessLookupError, NativeError):
                os.kill(pid, signal.SIGKILL)
                tracee.wait_end(pid)


def _go_on(tid: int) -> Stop:
    """Let a tracee of ours run to its next stop; signals, which can only be SIGSTOP, are dropped."""
    tracee.cont(tid)
    return tracee.wait(tid)
