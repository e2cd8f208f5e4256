"""Stopping every thread of a process, and letting them go again on every way out."""

from __future__ import annotations

import gc
import os
import struct
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crd.errors import FreezeTimeout, NativeError, TargetGone, TraceDenied, TraceeGone, TracerBusy
from crd.native import tracee
from crd.native.memory import Memory
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.native.tracee import Registers, RseqConfiguration, Stop

_FIFO_PRIORITY = 10
_PROCESSOR = 39  # field of stat
_EINTR = -4
_RSEQ_CS = struct.Struct("<IIQQQ")

# Calls that return EINTR to the program because of any stop, though no signal came (engine.md C8).
_INTERRUPTED_BY_A_STOP = {
    232,  # epoll_wait
    281,  # epoll_pwait
    441,  # epoll_pwait2
    128,  # rt_sigtimedwait
    65,  # semop
    220,  # semtimedop
    45,  # recvfrom with SO_RCVTIMEO
    47,  # recvmsg with SO_RCVTIMEO
    208,  # io_getevents
    426,  # io_uring_enter
}
_IO_URING_ENTER = 426


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
        threads: by tid.
        frozen_at: time.monotonic() before the first thread was seized.
        stop_seconds: from there to the last detach; set by thaw.
    """

    pid: int
    memory: Memory
    threads: dict[int, FrozenThread] = field(default_factory=dict)
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
        with suppress(OSError):
            os.sched_setaffinity(0, {procfs.stat(self.pid).field(_PROCESSOR)})
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_FIFO_PRIORITY))

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
        """Let every thread go; a signal that was about to be delivered is."""
        for thread in self.threads.values():
            with suppress(TraceeGone):
                tracee.detach(thread.tid, thread.signal_due)
        if self.threads:
            self.stop_seconds = time.monotonic() - self.frozen_at
        self.threads.clear()
        self.relax()


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
    with Memory(pid) as memory:
        state = Frozen(pid, memory)
        try:
            state.hurry()
            _stop_all(state, seconds)
            for thread in state.threads.values():
                _hide_the_stop(state, thread)
            yield state
        finally:
            state.thaw()


def _stop_all(state: Frozen, seconds: float) -> None:
    """Seize and interrupt threads until a pass over them finds no new one."""
    state.frozen_at = time.monotonic()
    deadline = state.frozen_at + seconds
    seized: set[int] = set()
    while new := [tid for tid in procfs.threads(state.pid) if tid not in seized]:
        asked = [tid for tid in new if _seize(state.pid, tid)]
        seized.update(new)
        for tid in asked:
            _await_stop(state, tid, deadline)
        if time.monotonic() > deadline:
            raise FreezeTimeout(f"process {state.pid} makes threads faster than they can be stopped", pid=state.pid)
    if state.pid not in state.threads:
        raise TargetGone(f"the main thread of process {state.pid} has ended", pid=state.pid)
    state.threads = {state.pid: state.leader, **state.threads}


def _seize(pid: int, tid: int) -> bool:
    try:
        tracee.seize(tid, tracee.OPTION_TRACESYSGOOD)
        tracee.interrupt(tid)
    except TraceeGone:
        return False
    except TraceDenied as error:
        try:
            lines = procfs.status(f"{pid}/task/{tid}")
        except TargetGone:
            return False
        if lines["State"].startswith(("Z", "X")):
            return False
        if tracer := int(lines.get("TracerPid", "0")):
            name = lines and procfs.stat(tracer).comm
            raise TracerBusy(f"process {pid} is traced by pid {tracer} ({name})", pid=pid, tracer=tracer,
                             hint="End the debugger or tracer, then try again.") from error
        raise
    return True


def _await_stop(state: Frozen, tid: int, deadline: float) -> None:
    stop = tracee.wait(tid, deadline=deadline)
    if stop is None:
        raise FreezeTimeout(f"thread {tid} of process {state.pid} did not stop in time", pid=state.pid, tid=tid,
                            hint="It waits in the kernel for something that does not come, such as a dead file server.")
    if stop.ended:
        return
    thread = FrozenThread(tid, stop, tracee.get_registers(tid))
    if stop.is_signal:
        thread.signal_due, thread.siginfo = stop.signal, tracee.get_siginfo(tid)
    state.threads[tid] = thread


def _hide_the_stop(state: Frozen, thread: FrozenThread) -> None:
    """Let the program not see that it was stopped: no EINTR out of nothing, no torn rseq critical section."""
    thread.rseq = tracee.rseq_configuration(thread.tid)
    changed = _restart_interrupted_call(state.pid, thread)
    if thread.rseq.address:
        changed |= _abort_critical_section(state.memory, thread)
    if changed:
        tracee.set_registers(thread.tid, thread.registers)


def _restart_interrupted_call(pid: int, thread: FrozenThread) -> bool:
    registers = thread.registers
    if registers.orig_rax not in _INTERRUPTED_BY_A_STOP or registers.result != _EINTR or thread.signal_due:
        return False
    if registers.orig_rax == _IO_URING_ENTER and registers.rsi:
        return False  # it has submitted: a second call would submit again
    lines = procfs.status(f"{pid}/task/{thread.tid}")
    pending = int(lines["SigPnd"], 16) | int(lines["ShdPnd"], 16)
    if pending & ~int(lines["SigBlk"], 16):
        return False
    registers.rax, registers.rip, registers.orig_rax = registers.orig_rax, registers.rip - 2, -1
    return True


def _abort_critical_section(memory: Memory, thread: FrozenThread) -> bool:
    """Send a thread inside an rseq critical section to its abort handler, as the kernel would (rseq(2))."""
    try:
        section = memory.read_u64(thread.rseq.address + 8)
        if not section:
            return False
        _version, _flags, start, length, abort = _RSEQ_CS.unpack(memory.read(section, _RSEQ_CS.size))
    except NativeError:
        return False  # a stale pointer: the kernel would kill a thread that relied on it
    if not start <= thread.registers.rip < start + length:
        return False
    thread.registers.rip, thread.registers.orig_rax = abort, -1
    return True
