"""Copies of tasks that are let run for a moment, and seen to: they stay our tracees, so none outlives us."""

from __future__ import annotations

import os
import resource
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crd.engine.rehearsal import Seen
from crd.engine.userspace.sandbox import available_bytes
from crd.errors import NativeError, TargetError
from crd.native import tracee
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from crd.engine.userspace.skeleton import Skeleton
    from crd.native.tracee import Stop

_OPTIONS = (tracee.OPTION_EXITKILL | tracee.OPTION_TRACESYSGOOD | tracee.OPTION_TRACEEXIT | tracee.OPTION_TRACEFORK
            | tracee.OPTION_TRACEVFORK | tracee.OPTION_TRACECLONE)
_LOOK_SECONDS = 0.05
_AT_LEAST_SECONDS = 0.5
"""As long the copies run, for what they do first to be seen."""
_PATIENCE_SECONDS = 30.0
"""As long a thread may take to run at all, on a machine with other things to do."""
_MORE_TASKS = 1000
"""So many tasks may the copies make."""
_FAULTS = {signal.SIGSEGV, signal.SIGILL, signal.SIGBUS, signal.SIGSYS, signal.SIGTRAP, signal.SIGFPE, signal.SIGABRT}
_DUMPING = _FAULTS | {signal.SIGQUIT, signal.SIGXCPU, signal.SIGXFSZ}
"""Whose default action has the kernel write a core, or tell the host's handler of crashes (core(5))."""


@dataclass(slots=True)
class _Copy:
    """One process: its number in the image, those of its threads now, and what their counters were before they ran."""

    pid: int
    comm: str
    tids: Sequence[int]
    stopped: bool
    before: dict[int, tuple[int, ...]] = field(default_factory=dict)
    ran: set[int] = field(default_factory=set)
    ended: int | None = None

    def look(self) -> None:
        """Note which threads have run by now."""
        self.ran.update(tid for tid in self.tids if tid not in self.ran and _counters(tid) != self.before[tid])

    @property
    def is_settled(self) -> bool:
        """Whether nothing more need be waited for."""
        return self.ended is not None or self.stopped or self.ran.issuperset(self.tids)

    def seen(self) -> Seen:
        """Say what became of it."""
        if self.ended is None:
            idle = 0 if self.stopped else len(self.tids) - len(self.ran)
            doing = "stayed stopped" if self.stopped else "ran"
            return Seen(pid=self.pid, comm=self.comm, failed=bool(idle),
                        what=f"{idle} of {len(self.tids)} threads did not run" if idle else doing)
        if number := self.ended & 0x7F:
            name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
            return Seen(pid=self.pid, comm=self.comm, what=f"ended by {name}", failed=number in _FAULTS)
        return Seen(pid=self.pid, comm=self.comm, what=f"ended with exit status {self.ended >> 8 & 0xFF}", failed=False)


class Watch:
    """Lets the vessels of a skeleton, which are complete, run for a moment."""

    def __init__(self, skeleton: Skeleton, processes: Iterable[tuple[int, str, bool]]) -> None:
        """Watch these.

        Args:
            skeleton: they stay its to kill.
            processes: its number in the image and name of each, and whether it is stopped by job control.
        """
        self._copies = [_Copy(pid, comm, list(skeleton[pid].threads), stopped) for pid, comm, stopped in processes]
        self._by_tid = {tid: copy for copy in self._copies for tid in copy.tids}
        self._leaders = {skeleton[copy.pid].pid: copy for copy in self._copies}
        self._known = set(self._by_tid)

    def run(self) -> tuple[Seen, ...]:
        """Let them run until each has been seen to, or has ended, and a moment more; return what was seen."""
        for copy in self._copies:
            _bound(copy.tids[0])
            for tid in copy.tids:
                copy.before[tid] = _counters(tid)
                tracee.set_options(tid, _OPTIONS)
        for copy in reversed(self._copies):
            for tid in reversed(copy.tids):
                _go_on(tid, stopped=copy.stopped)
        begun = time.monotonic()
        while not self._is_over(time.monotonic() - begun):
            self._serve(time.monotonic() + _LOOK_SECONDS)
            for copy in self._copies:
                if copy.ended is None:
                    copy.look()
        seen = tuple(copy.seen() for copy in self._copies)
        self._end()
        return seen

    def _is_over(self, seconds: float) -> bool:
        if seconds >= _PATIENCE_SECONDS or len(self._known) > len(self._by_tid) + _MORE_TASKS:
            return True
        if all(copy.ended is not None for copy in self._copies):
            return True
        return seconds >= _AT_LEAST_SECONDS and all(copy.is_settled for copy in self._copies)

    def _serve(self, deadline: float) -> None:
        """Let go on whatever stops, until a time."""
        with suppress(NativeError):  # ECHILD: nobody is left
            while stop := tracee.wait_until(deadline):
                self._known.add(stop.tid)
                if stop.stopped:
                    with suppress(NativeError):  # it was killed meanwhile
                        self._let_go(stop)

    def _end(self) -> None:
        """Kill them all, and what they have made."""
        for tid in self._known:
            _kill(tid)
        with suppress(NativeError):  # ECHILD: nobody is left
            while True:
                stop = tracee.wait()
                if stop.stopped:
                    _kill(stop.tid)  # maybe it is new
                    with suppress(NativeError):
                        tracee.cont(stop.tid)

    def _let_go(self, stop: Stop) -> None:
        if stop.event == tracee.EVENT_EXIT:
            self._note_end(stop.tid, tracee.event_message(stop.tid))
        if not stop.is_signal:
            _go_on(stop.tid, stopped=stop.is_group_stop)
        elif stop.signal in _DUMPING and _is_default(stop.tid, stop.signal):
            self._note_end(stop.tid, stop.signal)
            tracee.cont(stop.tid, signal.SIGKILL)
        else:
            tracee.cont(stop.tid, stop.signal)

    def _note_end(self, tid: int, status: int) -> None:
        """Note the end of a process: by a signal with the first of its threads, else with the one that leads it."""
        copy = self._by_tid.get(tid)
        if copy and copy.ended is None and (status & 0x7F or tid in self._leaders):
            copy.ended = status


def _kill(tid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(tid, signal.SIGKILL)


def _go_on(tid: int, *, stopped: bool) -> None:
    if stopped:
        tracee.listen(tid)
    else:
        tracee.cont(tid)


def _is_default(tid: int, number: int) -> bool:
    status = procfs.status(tid)
    return not (status.signals("SigCgt") | status.signals("SigIgn")) >> (number - 1) & 1


def _counters(tid: int) -> tuple[int, ...]:
    """Return what grows when a thread runs: its switches and its time; nothing of one that is gone."""
    try:
        status, stat = procfs.status(tid), procfs.stat(tid)
    except TargetError:
        return ()
    return (int(status["voluntary_ctxt_switches"]), int(status["nonvoluntary_ctxt_switches"]), stat.field(14),
            stat.field(15))


def _bound(pid: int) -> None:
    """Keep a copy from taking all memory, and from leaving a core."""
    with suppress(OSError, TargetError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
        size = int(procfs.status(pid)["VmSize"].split()[0]) << 10
        most = size + available_bytes() // 2
        if hard == resource.RLIM_INFINITY or hard > most:
            resource.prlimit(pid, resource.RLIMIT_AS, (most, hard))
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
