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
from crd.native.threads import Room, ThreadGroup
from crd.target import procfs
from crd.target.wording import process_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.native.tracee import Registers, Stop
    from crd.target.procfs import Status

_FIFO_PRIORITY = 10
_LET_GO_SECONDS = 1.0
_LOOK_AGAIN_SECONDS = 0.005
_SEIZE_ATTEMPTS = 3


@dataclass(slots=True)
class FrozenThread:
    """A stopped thread.

    Attributes:
        tid: its number.
        stop: how it stopped first.
        signal_due: the signal whose delivery the stop came before, 0 = none; delivered when it is let go.
        siginfo: of that signal.
    """

    tid: int
    stop: Stop
    signal_due: int = 0
    siginfo: bytes = b""


@dataclass(slots=True)
class Frozen:
    """A process whose threads are all stopped, the leader first.

    Attributes:
        pid: of the process.
        memory: of the process; open while it is frozen.
        threads: by tid.
        group: all threads, the leader first, with what was read of them.
        seized: the tids that are our tracees, stopped or not yet.
        frozen_at: time.monotonic() before the first thread was seized.
        stop_seconds: from there to the last detach; set by thaw.
    """

    pid: int
    memory: Memory = field(init=False)
    threads: dict[int, FrozenThread] = field(default_factory=dict)
    group: ThreadGroup = field(init=False)
    seized: set[int] = field(default_factory=set)
    frozen_at: float = 0.0
    stop_seconds: float = 0.0
    _latency_request: int = -1
    _before: tuple[int, os.sched_param, bool] | None = None

    @property
    def leader(self) -> FrozenThread:
        """The thread whose tid is the pid."""
        return self.threads[self.pid]

    @property
    def registers(self) -> Registers:
        """Those of the leader."""
        return self.group.registers(self.pid)

    def status(self, tid: int) -> Status:
        """Return the status of a thread, as it was read in the stop."""
        text = self.group.status(tid)
        return procfs.parsed_status(text) if text else procfs.status(f"{self.pid}/task/{tid}")

    def hurry(self) -> None:
        """Lose no time until ``relax``.

        That is SCHED_FIFO, since whoever is let go competes with us; no garbage collection; and idle processors that
        stay awake (a latency request, admin-guide/pm/cpuidle of the kernel), since to wake one takes longer than what
        it is wanted for.
        """
        with suppress(OSError):
            self._latency_request = os.open("/dev/cpu_dma_latency", os.O_WRONLY | os.O_CLOEXEC)
            os.write(self._latency_request, bytes(4))
        self._before = (os.sched_getscheduler(0), os.sched_getparam(0), gc.isenabled())
        gc.disable()
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_FIFO_PRIORITY))

    def relax(self) -> None:
        """Run as before; called by thaw, or earlier where the target is to stay stopped for long."""
        if self._before:
            (policy, parameter, collecting), self._before = self._before, None
            with suppress(PermissionError):
                os.sched_setscheduler(0, policy, parameter)
            if collecting:
                gc.enable()
        if self._latency_request >= 0:
            os.close(self._latency_request)
            self._latency_request = -1

    def thaw(self) -> None:
        """Let every thread go; a signal that was about to be delivered is.

        A thread in an uninterruptible wait cannot be let go by anything but the end of this process (ptrace(2)).
        """
        if self.threads:
            group = ThreadGroup(list(self.threads))
            failed = group.detach({tid: thread.signal_due for tid, thread in self.threads.items() if thread.signal_due})
            self.stop_seconds = time.monotonic() - self.frozen_at
            self.seized.difference_update(self.threads.keys() - failed.keys())
        deadline = time.monotonic() + _LET_GO_SECONDS
        for tid in self.seized:
            _let_go(tid, deadline)
        self.threads.clear()
        self.seized.clear()
        self.relax()


def _let_go(tid: int, deadline: float) -> None:
    """Detach a thread that is on its way to a stop, or has been killed in it."""
    with suppress(NativeError):  # ECHILD: it is no tracee any more
        stop = tracee.wait_until(deadline, tid)
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
        room = stack.enter_context(Room(pid, procfs.threads(pid)))
        stack.callback(state.thaw)
        state.hurry()
        _stop_all(state, room, seconds)
        state.memory = stack.enter_context(Memory(pid))  # not before: an execve(2) would have replaced it
        for tid in state.group.noticing():
            unnoticed.hide(state, state.threads[tid])
        yield state


def _stop_all(state: Frozen, room: Room, seconds: float) -> None:
    """Stop threads until a pass over them finds no new one, and all that have stopped are still there.

    An execve(2) in one thread ends those that have stopped before it, and gives it the number of the main thread.
    """
    state.frozen_at = time.monotonic()
    deadline = state.frozen_at + seconds
    passed: set[int] = set()
    new = list(room.tids)
    while True:
        if new:
            passed.update(new)
            passed -= _stop(state, new, deadline)
        elif gone := _read(state, room):
            passed -= gone
        else:
            return
        new = [] if procfs.n_threads(state.pid) == len(state.threads) else [
            tid for tid in procfs.threads(state.pid) if tid not in passed]
        if time.monotonic() > deadline:
            raise FreezeTimeout(f"process {state.pid} makes threads faster than they can be stopped", pid=state.pid)


def _stop(state: Frozen, tids: list[int], deadline: float) -> set[int]:
    """Stop threads; return those that ended meanwhile, whose numbers may be those of others now."""
    state.seized.update(tids)
    group = ThreadGroup(tids)
    for tid, error in group.seize(tracee.OPTION_TRACESYSGOOD).items():
        if error == errno.ESRCH or not _seize(state, tid):
            state.seized.discard(tid)
    waiting, ended = [tid for tid in tids if tid in state.seized], set()
    while waiting:
        late = []
        group = ThreadGroup(waiting)
        for tid, stop in zip(waiting, group.stops(min(deadline, time.monotonic() + _LOOK_AGAIN_SECONDS)), strict=True):
            if stop and stop.stopped:
                siginfo = _siginfo(stop)
                state.threads[tid] = FrozenThread(tid, stop, stop.signal if siginfo else 0, siginfo)
            elif stop or tid in group.errors():
                state.seized.discard(tid)
                ended.add(tid)
            else:
                late.append(tid)
        _remind(state.pid, late, deadline)
        waiting = late
    return ended


def _siginfo(stop: Stop) -> bytes:
    """Return that of a signal whose delivery a thread was stopped before."""
    if stop.is_signal:
        with suppress(TraceeGone):
            return tracee.get_siginfo(stop.tid)
    return b""


def _remind(pid: int, late: list[int], deadline: float) -> None:
    """Interrupt threads again: a number may have become another thread's, which was not interrupted."""
    for tid in late:
        if time.monotonic() > deadline:
            raise FreezeTimeout(
                f"thread {tid} of process {pid} did not stop in time", pid=pid, tid=tid,
                hint="It waits in the kernel for something that does not come, such as a dead file server.")
        with suppress(TraceeGone):
            tracee.interrupt(tid)


def _read(state: Frozen, room: Room) -> set[int]:
    """Read all threads, which have stopped; return those that have ended nevertheless, and forget them."""
    if state.pid not in state.threads:
        raise TargetGone(f"the main thread of process {state.pid} has ended", pid=state.pid)
    state.threads = {state.pid: state.leader, **state.threads}
    state.group = ThreadGroup(list(state.threads), [thread.stop for thread in state.threads.values()])
    gone = set(state.group.read(room))
    for tid in gone:
        del state.threads[tid]
    return gone


def _seize(state: Frozen, tid: int) -> bool:
    """Try again to trace and to stop a thread that refused; false if it has ended."""
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
