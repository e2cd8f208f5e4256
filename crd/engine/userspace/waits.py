"""Waits of epoll_wait(2), which a stop ends: they begin again with what is left of their time.

With all of it, a program that is saved more often than its timeout would never see it run out.  How long a thread has
slept only the scheduler knows: it keeps when a thread last ran (``se.exec_start`` of /proc/TID/sched; update_curr in
kernel/sched/fair.c), by a clock that each processor has of its own (rq_clock_task), which leaves out what others took.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.errors import CrdError
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from crd.native.tracee import Registers
    from crd.target.procfs import Status

_WITH_MILLISECONDS = {232, 281}  # epoll_wait, epoll_pwait: their timeout is the fourth argument
_PROCESSOR = 39  # proc_pid_stat(5)
_NAP_SECONDS = 0.00005


@dataclass(frozen=True, slots=True)
class Wait:
    """That of a thread, looked at before the stop.

    Attributes:
        since: time.monotonic() when it fell asleep, or a little later.
        sleeps: how often it had gone to sleep by then (voluntary_ctxt_switches).
    """

    since: float
    sleeps: int

    def shorten(self, registers: Registers, status: Status) -> None:
        """Take off the call that is to begin again what is over of its timeout, if it is this wait that the stop ended.

        Args:
            registers: of the call.
            status: of the thread in the stop, which is the next sleep.
        """
        if int(status["voluntary_ctxt_switches"]) == self.sleeps + 1:
            registers.r10 = max(0, _timeout(registers.r10) - int((time.monotonic() - self.since) * 1000))


def look(threads: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Wait]:
    """Return those of some threads that wait so, and not for ever; none where the kernel does not tell.

    Args:
        threads: pid and tid of each; they run on.
    """
    slept: dict[int, list[tuple[tuple[int, int], float, int]]] = {}
    for pid, tid in threads:
        with suppress(CrdError, KeyError):  # it has ended, or the kernel was built without CONFIG_SCHED_DEBUG
            if _waits(thread := f"{pid}/task/{tid}"):
                told = _scheduler(thread)
                slept.setdefault(procfs.stat(thread).field(_PROCESSOR), []).append(
                    ((pid, tid), float(told["se.exec_start"]) / 1000, int(told["nr_voluntary_switches"])))
    found: dict[tuple[int, int], Wait] = {}
    for processor, those in slept.items():
        with suppress(OSError, CrdError, KeyError), _on(processor):  # it may not be one of ours
            ahead = _clock_ahead()
            found |= {thread: Wait(at - ahead, sleeps) for thread, at, sleeps in those}
    return found


def _waits(thread: str) -> bool:
    number, *arguments = procfs.read(thread, "syscall").split()
    return number.isdecimal() and int(number) in _WITH_MILLISECONDS and _timeout(int(arguments[3], 16)) > 0


def _timeout(argument: int) -> int:
    """Return an int of a register; negative: for ever."""
    low = argument & 0xFFFFFFFF
    return low - (low >> 31 << 32)


def _scheduler(thread: str) -> dict[str, str]:
    """Return what the scheduler tells of a thread (proc_sched_show_task in kernel/sched/debug.c)."""
    lines = (line.partition(":") for line in procfs.read(thread, "sched").splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


@contextmanager
def _on(processor: int) -> Iterator[None]:
    """Run on a processor meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {processor})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _clock_ahead() -> float:
    """Return how many seconds the clock of the processor that we run on is ahead of time.monotonic()."""
    time.sleep(_NAP_SECONDS)  # it is now that we have last begun to run
    now = time.monotonic()
    return float(_scheduler("thread-self")["se.exec_start"]) / 1000 - now
