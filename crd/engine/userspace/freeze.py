"""Stopping every thread of one process; ``tree.py`` stops all processes of a target."""

from __future__ import annotations

import errno
import os
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.engine.userspace import unnoticed
from crd.errors import FreezeTimeout, NativeError, TargetGone, TraceDenied, TraceeGone, TracerBusy
from crd.native import tracee
from crd.native.memory import Memory
from crd.native.threads import Room, ThreadGroup
from crd.target import procfs
from crd.target.wording import process_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.engine.userspace.caller import Caller
    from crd.engine.userspace.waits import Wait
    from crd.native.tracee import Registers, Stop
    from crd.target.procfs import Status

_LOOK_AGAIN_SECONDS = 0.005
_SEIZE_ATTEMPTS = 3


@dataclass(slots=True)
class FrozenThread:
    """A stopped thread.

    Attributes:
        tid: its number.
        stop: how it stopped.
        signal_due: the signal whose delivery an injection was interrupted by, 0 = none; delivered when it is let go.
    """

    tid: int
    stop: Stop
    signal_due: int = 0


class Frozen:
    """A process whose threads are all stopped, the leader first.

    Attributes:
        pid: of the process.
        memory: of the process; open while it is frozen.
        threads: by tid.
        group: all threads, the leader first, with what was read of them.
        seized: the tids that are our tracees, stopped or not yet.
        room: where what is read of them goes.
        waits: of those that were found in a call whose time must not begin anew, by tid.
        caller: a thread of a target that waits for this checkpoint; it stays stopped when the others are let go.
    """

    memory: Memory
    group: ThreadGroup

    def __init__(self, pid: int, tids: Sequence[int] = (), caller: Caller | None = None) -> None:
        """Prepare to stop a process, which has about these threads; they run on until ``stop``."""
        self.pid = pid
        self.caller = caller
        self.threads: dict[int, FrozenThread] = {}
        self.seized: set[int] = set()
        self.waits: dict[int, Wait] = {}
        self._begun: set[int] = set()
        self._resources = ExitStack()
        self.room = self._resources.enter_context(Room(pid, tids or procfs.threads(pid)))

    def close(self) -> None:
        """Close what is open of it."""
        self._resources.close()

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

    def begin(self) -> None:
        """Ask the threads to stop that it had, so that they do while others are waited for; ``stop`` is to follow.

        Raises:
            TracerBusy, TraceDenied: as ``stop``.
        """
        self._begun = {tid for tid in self.room.tids if not self.caller or tid != self.caller.tid}
        _seize_all(self, list(self._begun))

    def take_begun(self) -> set[int]:
        """Return the threads that have been asked, once."""
        begun, self._begun = self._begun, set()
        return begun

    def stop(self, deadline: float) -> None:
        """Stop all threads and read them.

        Args:
            deadline: time.monotonic() at which to give up.

        Raises:
            FreezeTimeout: a thread did not stop in time.
            TargetGone: the process ended.
            TracerBusy: another tracer has it.
            TraceDenied: we may not trace it.
        """
        _stop_all(self, deadline)
        # Not before: an execve(2) would have replaced it.
        self.memory = self._resources.enter_context(Memory(self.pid))
        for tid in self.group.noticing():
            unnoticed.hide(self, self.threads[tid])

    def detach(self) -> None:
        """Let every stopped thread go, the leader last; a signal that was about to be delivered is."""
        if self.caller:
            self.threads.pop(self.caller.tid, None)
        if self.threads:
            group = ThreadGroup(list(self.threads))
            failed = group.detach({tid: thread.signal_due for tid, thread in self.threads.items() if thread.signal_due})
            self.seized.difference_update(self.threads.keys() - failed.keys())
            self.threads.clear()

    def let_go(self, deadline: float) -> None:
        """Let those go that are on their way to a stop, or have been killed in it.

        A thread in an uninterruptible wait cannot be let go by anything but the end of this process (ptrace(2)).
        """
        for tid in self.seized:
            with suppress(NativeError):  # ECHILD: it is no tracee any more
                stop = tracee.wait_until(deadline, tid)
                if stop and stop.stopped:
                    tracee.detach(tid, stop.signal if stop.is_signal else 0)
        self.seized.clear()


def _stop_all(state: Frozen, deadline: float) -> None:
    """Stop threads until a pass over them finds no new one, and all that have stopped are still there.

    An execve(2) in one thread ends those that have stopped before it, and gives it the number of the main thread.
    """
    room = state.room
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
    if state.caller and state.caller.tid in tids:
        caller = state.caller
        tids = [tid for tid in tids if tid != caller.tid]
        state.threads[caller.tid] = FrozenThread(caller.tid, caller.hold(deadline))
    seized, begun = state.seized, state.take_begun()
    _seize_all(state, [tid for tid in tids if tid not in begun])
    waiting, ended = [tid for tid in tids if tid in seized], set()
    while waiting:
        again, late = [], []
        group = ThreadGroup(waiting)
        for tid, stop in zip(waiting, group.stops(min(deadline, time.monotonic() + _LOOK_AGAIN_SECONDS)), strict=True):
            if stop and stop.is_signal:
                _deliver(stop)
                again.append(tid)
            elif stop and stop.stopped:
                state.threads[tid] = FrozenThread(tid, stop)
            elif stop or tid in group.errors():
                seized.discard(tid)
                ended.add(tid)
            else:
                late.append(tid)
        _remind(state.pid, late, deadline)
        waiting = again + late
    return ended


def _seize_all(state: Frozen, tids: list[int]) -> None:
    """Trace threads, and ask them to stop."""
    state.seized.update(tids)
    for tid, error in ThreadGroup(tids).seize(tracee.OPTION_TRACESYSGOOD).items():
        if error == errno.ESRCH or not _seize(state, tid):
            state.seized.discard(tid)


def _deliver(stop: Stop) -> None:
    """Have a thread take the signal that it was stopped before, and stop it before anything else that it does.

    A stop that was asked for comes before the next signal and before any instruction of a handler (get_signal in
    kernel/signal.c).
    """
    with suppress(TraceeGone):
        tracee.interrupt(stop.tid)
        tracee.cont(stop.tid, stop.signal)


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
