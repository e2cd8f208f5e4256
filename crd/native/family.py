"""The two tasks that a snapshot stub makes, followed from the target's clone(2) on (``csrc/arch/x86_64/stubs.S``)."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from crd.errors import NativeError, TraceeGone
from crd.native import tracee
from crd.native.passage import come_home, go_through

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.native.tracee import Registers

_FOLLOW = tracee.OPTION_TRACESYSGOOD | tracee.OPTION_TRACEVFORK | tracee.OPTION_TRACECLONE


class Family:
    """The middle task, which makes the child and ends, and the child; both are tracees of ours from their beginning.

    Attributes:
        target: the thread that goes through the stub.
        child: its pid, 0 = there is none.
        errno: why there is none.
    """

    def __init__(self, target: int, original: Registers) -> None:
        """Follow a thread, which had these registers before."""
        self.target = target
        self._original = original
        self._middle = 0
        self._made = self._is_making = False
        self.child = 0
        self.errno = 0

    def begin(self) -> None:
        """Take the target, from the entry of its clone, to where the middle task makes the child, which takes a while.

        Raises:
            TraceeGone: the target ended.
        """
        target = self.target
        tracee.set_options(target, _FOLLOW)
        tracee.to_syscall(target)
        stop = tracee.wait(target)
        if stop.ended:
            raise TraceeGone(f"task {target} ended", tid=target)
        self._made = stop.event == tracee.EVENT_VFORK
        if self._made:
            self._middle = tracee.event_message(target)
            tracee.to_syscall(target)
            tracee.wait(self._middle)
            _hurry(self._middle)
            tracee.cont(self._middle)
            self._is_making = True
        else:
            self.errno = -tracee.get_registers(target).result

    def end(self) -> None:
        """Follow the middle task to its end, and bring the target home.

        Raises:
            InjectionInterrupted, TraceeGone: as ``go_through``.
        """
        target = self.target
        if self._made:
            self._follow_middle()
            if tracee.wait(target).ended:
                raise TraceeGone(f"task {target} ended", tid=target)
        tracee.set_options(target, tracee.OPTION_TRACESYSGOOD)
        go_through(target, self._original, 4 if self._made else 2)  # with wait4, to the exit of the last rt_sigprocmask
        come_home(target, self._original)

    def _follow_middle(self) -> None:
        self._is_making = False
        while not (stop := tracee.wait(self._middle)).ended:
            if stop.event == tracee.EVENT_CLONE:
                self.child = tracee.event_message(self._middle)
                tracee.wait(self.child)
                tracee.set_options(self.child, tracee.OPTION_EXITKILL | tracee.OPTION_TRACESYSGOOD)
            tracee.cont(self._middle)  # signals, which can only be SIGSTOP, are dropped
        self._middle = 0
        self.errno = stop.signal if os.WIFEXITED(stop.status) else errno.EINTR

    @contextmanager
    def unless_failed(self) -> Iterator[None]:
        """A context that ends all there is of them if it is left by an exception."""
        try:
            yield
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End those that there are: the middle task, if it is about to make the child, does so before."""
        with suppress(NativeError, TraceeGone):
            if self._is_making:
                self._follow_middle()
        for pid in filter(None, (self._middle, self.child)):
            with suppress(ProcessLookupError, NativeError):
                os.kill(pid, signal.SIGKILL)
                tracee.wait_end(pid)


def _hurry(middle: int) -> None:
    """Have the middle task make the child with our own urgency: it ends then, and the child does not inherit that."""
    with suppress(OSError):
        if policy := os.sched_getscheduler(0):
            os.sched_setscheduler(middle, policy | os.SCHED_RESET_ON_FORK, os.sched_getparam(0))
