"""Stopping every thread of a process, and letting them go again on every way out."""

from __future__ import annotations

import errno
import gc
import os
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crd.engine.userspace import unnoticed
from crd.errors import FreezeTimeout, NativeError, TargetGone, TraceDenied, TraceeGone, TracerBusy
from crd.native import tracee
from crd.native.memory import Memory
from crd.target import procfs
from crd.target.wording import process_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.native.tracee import Registers, RseqConfiguration, Stop
    from crd.target.procfs import Stat

_FIFO_PRIORITY = 10
_PROCESSOR = 39  # field of stat
_LET_GO_SECONDS = 1.0
_LOOK_AGAIN_SECONDS = 0.005
_SEIZE_ATTEMPTS = 3


@dataclass(slots=True)
class FrozenThread:
    """A stopped thread.

    Attributes:
        tid: its number.
        stop: how it stopped first.
        registers: with which it goes on.
        signal_due: the signal whose delivery the stop came before, 0 = none; delivered when it is let go.
        siginfo: of that signal.
        rseq: what it registered.
    """

    tid: int
    stop: Stop
    registers: Registers
    signal_due: int = 0
    siginfo: bytes = b""
    rseq: RseqConfiguration = field(default_factory=lambda: tracee.RseqConfiguration(0, 0, 0, 0))


@dataclass(slots=True)
class Frozen:
    """A process whose threads are all stopped, the leader first.

    Attributes:
        pid: of the process.
        memory: of the process; open while it is frozen.
        threads: by tid.
        seized: the tids that are our tracees, stopped or not yet.
        frozen_at: time.monotonic() before the first thread was seized.
        stop_seconds: from there to the last detach; set by thaw.
    """

    pid: int
    memory: Memory = field(init=False)
    threads: dict[int, FrozenThread] = field(default_factory=dict)
    seized: set[int] = field(default_factory=set)
    frozen_at: float = 0.0
    stop_seconds: float = 0.0
    _before: tuple[int, os.sched_param, set[int], bool] | None = None

    @property
    def leader(self) -> FrozenThread:
        """The thread whose tid is the pid."""
        return self.threads[self.pid]

    def hurry(self) -> None:
        """Lose no time until ``relax``.

        That is SCHED_FIFO, since every thread let go competes with the tracer; no garbage collection; and the processor
        of the main thread, since handing over to another one takes an interrupt and its waking up.
        """
        self._before = (os.sched_getscheduler(0), os.sched_getparam(0), os.sched_getaffinity(0), gc.isenabled())
        gc.disable()
        self.follow(procfs.stat(self.pid))
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_FIFO_PRIORITY))

    def follow(self, stat: Stat) -> None:
        """Run on the processor of a thread, for as long as we hurry."""
        if self._before:
            with suppress(OSError):
                os.sched_setaffinity(0, {stat.field(_PROCESSOR)})

    def relax(self) -> None:
        """Run as before; called by thaw, or earlier where the target is to stay stopped for long."""
        if self._before:
            (policy, parameter, processors, collecting), self._before = self._before, None
            with suppress(PermissionError):
                os.sched_setscheduler(0, policy, parameter)
            with suppress(OSError):
                os.sched_setaffinity(0, processors)
            if collecting:
                gc.enable()

    def thaw(self) -> None:
        """Let every thread go; a signal that was about to be delivered is.

        A thread in an uninterruptible wait cannot be let go by anything but the end of this process (ptrace(2)).
        """
        deadline = time.monotonic() + _LET_GO_SECONDS
        for tid in sorted(self.seized, key=self.pid.__eq__):  # the main thread last: it ends after the others
            _let_go(tid, self.threads.get(tid), deadline)
        if self.threads:
            self.stop_seconds = time.monotonic() - self.frozen_at
        self.threads.clear()
        self.seized.clear()
        self.relax()


def _let_go(tid: int, thread: FrozenThread | None, deadline: float) -> None:
    """Detach a thread, which may be on its way to a stop, or have been killed in it."""
    if thread:
        with suppress(TraceeGone):
            tracee.detach(tid, thread.signal_due)
            return
    with suppress(NativeError):  # ECHILD: it is no tracee any more
        stop = tracee.wait(tid, deadline=deadline)
        if stop and stop.stopped:
            tracee.detach(tid, stop.signal if stop.is_signal else 0)


@contextmanager
def frozen(pid: int, seconds: float) -> Iterator[Frozen]:
    """Stop all threads of a process for as long as the context lasts, or until they are thawed.

    Args:
        pid: of the process.
        seconds: how long the freeze itself may take.

    Raises:
        FreezeTimeout: a thread did not stop in time; all run on.
        TargetGone: the process ended.
        TracerBusy: another tracer has it.
        TraceDenied: we may not trace it.
    """
    state = Frozen(pid)
    with ExitStack() as stack:
        stack.callback(state.thaw)
        state.hurry()
        _stop_all(state, seconds)
        state.memory = stack.enter_context(Memory(pid))  # not before: an execve(2) would have replaced it
        for thread in state.threads.values():
            unnoticed.hide(state, thread)
        yield state


def _stop_all(state: Frozen, seconds: float) -> None:
    """Seize and interrupt threads until a pass over them finds no new one, and all that have stopped are still there.

    An execve(2) in one thread ends those that have stopped before it, and gives it the number of the main thread.
    """
    state.frozen_at = time.monotonic()
    deadline = state.frozen_at + seconds
    passed: set[int] = set()
    while new := [tid for tid in procfs.threads(state.pid) if tid not in passed]:
        asked = [tid for tid in new if _seize(state, tid)]
        passed.update(new)
        passed.difference_update([tid for tid in asked if not _await_stop(state, tid, deadline)])
        passed.difference_update([tid for tid in list(state.threads) if not _is_still_stopped(state, tid)])
        if time.monotonic() > deadline:
            raise FreezeTimeout(f"process {state.pid} makes threads faster than they can be stopped", pid=state.pid)
    if state.pid not in state.threads:
        raise TargetGone(f"the main thread of process {state.pid} has ended", pid=state.pid)
    state.threads = {state.pid: state.leader, **state.threads}


def _seize(state: Frozen, tid: int) -> bool:
    """Begin to trace and to stop a thread; false if it has ended."""
    for attempt in range(_SEIZE_ATTEMPTS):
        try:
            tracee.seize(tid, tracee.OPTION_TRACESYSGOOD)
        except TraceeGone:
            return False
        except TraceDenied as error:
            tracer = _tracer(state.pid, tid)
            if tracer is None:
                return False
            if tracer == os.getpid():
                break  # of a thread that has got this number by an execve(2)
            if tracer:
                raise TracerBusy(f"process {state.pid} is traced by {process_name(tracer)}", pid=state.pid,
                                 tracer=tracer, hint="End the debugger or tracer, then try again.") from error
            if attempt == _SEIZE_ATTEMPTS - 1:  # before that it may have been in the midst of an execve(2)
                raise
        else:
            break
    state.seized.add(tid)
    with suppress(TraceeGone):
        tracee.interrupt(tid)
    return True


def _tracer(pid: int, tid: int) -> int | None:
    """Return who traces a thread, 0 = nobody; None if it has ended."""
    try:
        status = procfs.status(f"{pid}/task/{tid}")
    except TargetGone:
        return None
    return None if status.state in "ZX" else status.tracer_pid


def _await_stop(state: Frozen, tid: int, deadline: float) -> bool:
    """Wait until a thread has stopped; false if it has ended."""
    try:
        stop = _next_stop(state, tid, deadline)
        if not stop.ended:
            thread = FrozenThread(tid, stop, tracee.get_registers(tid))
            if stop.is_signal:
                thread.signal_due, thread.siginfo = stop.signal, tracee.get_siginfo(tid)
            state.threads[tid] = thread
            return True
    except TraceeGone:
        return False
    except NativeError as error:
        if error.errno != errno.ECHILD:
            raise
    state.seized.discard(tid)
    return False


def _next_stop(state: Frozen, tid: int, deadline: float) -> Stop:
    """Wait; look again now and then, since a number may become another thread's, which was not interrupted."""
    while not (stop := tracee.wait(tid, deadline=min(deadline, time.monotonic() + _LOOK_AGAIN_SECONDS))):
        if time.monotonic() > deadline:
            raise FreezeTimeout(
                f"thread {tid} of process {state.pid} did not stop in time", pid=state.pid, tid=tid,
                hint="It waits in the kernel for something that does not come, such as a dead file server.")
        tracee.interrupt(tid)
    return stop


def _is_still_stopped(state: Frozen, tid: int) -> bool:
    """Read what a stopped thread has registered with rseq(2); false, and forget it, if it has ended."""
    try:
        state.threads[tid].rseq = tracee.rseq_configuration(tid)
    except TraceeGone:
        del state.threads[tid]
        return False
    return True
