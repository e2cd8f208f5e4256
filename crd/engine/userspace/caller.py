"""The thread that waits for a call which we serve, and that may be part of what is checkpointed."""

from __future__ import annotations

import errno

from crd.engine.userspace.interrupted import returned
from crd.errors import FreezeTimeout, TargetGone
from crd.native import notification, tracee
from crd.native.syscall import NR

IF_WE_DIE = -errno.EIO
"""What a call returns that nobody answers any more."""
_SYSCALL_BYTES = 2


class Caller:
    """A thread in a call, good for one answer.

    While the call waits the thread can be neither stopped nor read.  To be checkpointed it leaves the call with an
    error, and is stopped before it sees that; from then on its answer is a matter of registers.  If we die, it runs on
    and sees the error: no image is there that it could rely on.
    """

    def __init__(self, listener: int, call: notification.Notification) -> None:
        """Answer a call that was received from a listener, which stays the caller's of this."""
        self.tid = call.tid
        self._listener = listener
        self._cookie = call.cookie
        self._stop: tracee.Stop | None = None
        self._called_back = False

    def waits(self) -> bool:
        """Whether it is still there, so that what was looked up by its number is its own."""
        return notification.waits(self._listener, self._cookie)

    def hold(self, deadline: float) -> tracee.Stop:
        """Stop it, unless that is so already, and return how it has stopped; it stays so until ``answer``.

        It stops before a signal or an instruction of its own: a stop that was asked for comes first when a thread
        leaves a call (get_signal in kernel/signal.c).

        Args:
            deadline: time.monotonic() at which to give up.

        Raises:
            TargetGone: it was killed.
            FreezeTimeout: it did not stop in time.
            TraceDenied: we may not trace it.
        """
        if not self._called_back:
            tracee.seize(self.tid, tracee.OPTION_TRACESYSGOOD)
            tracee.interrupt(self.tid)
            self._called_back = True
            if not notification.answer(self._listener, self._cookie, IF_WE_DIE):
                raise TargetGone(f"thread {self.tid} was killed", tid=self.tid)
        self._stop = self._stop or tracee.wait_until(deadline, self.tid)
        if self._stop is None:
            raise FreezeTimeout(f"thread {self.tid} did not stop in time", tid=self.tid)
        if self._stop.ended:
            raise TargetGone(f"thread {self.tid} was killed", tid=self.tid)
        return self._stop

    def end(self) -> None:
        """Have the whole process of a thread that is held exit with status 0, by the instruction of its call.

        Raises:
            TraceeGone: it was killed meanwhile.
        """
        registers = tracee.get_registers(self.tid)
        registers.rax, registers.rdi = NR.EXIT_GROUP, 0
        registers.rip, registers.orig_rax = registers.rip - _SYSCALL_BYTES, -1
        tracee.set_registers(self.tid, registers)
        tracee.detach(self.tid)
        self._stop = None

    def answer(self, result: int) -> None:
        """Have the call return, with a negative errno for an error, and let the thread go.

        Raises:
            TraceeGone: it was killed meanwhile.
        """
        if not self._called_back:
            notification.answer(self._listener, self._cookie, result)
        elif self._stop and self._stop.stopped:
            tracee.set_registers(self.tid, returned(tracee.get_registers(self.tid), result))
            tracee.detach(self.tid, self._stop.signal if self._stop.is_signal else 0)
