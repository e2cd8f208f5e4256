"""timer_create(2): timers under their numbers, with what is left of each."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from crd.engine.userspace.questions import OUT, Question
from crd.image.profile import PosixTimer
from crd.native.syscall import NR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.engine.userspace.questions import Asker
    from crd.native.batch import Batch
    from crd.target.procfs import PosixTimerEntry

_ITIMERSPEC = struct.Struct("<4q")  # interval, value: seconds, nanoseconds
_SIGEVENT = struct.Struct("<QiiI44x")
_NANOSECONDS = 1_000_000_000
_NOTIFY = {"signal": 0, "none": 1, "thread": 2}
_SIGEV_THREAD_ID = 4
_PR_TIMER_CREATE_RESTORE_IDS = 77


def dump(entries: Sequence[PosixTimerEntry], asker: Asker) -> list[PosixTimer]:
    """Ask for what is left of each timer of /proc/PID/timers."""
    questions = [question for entry in entries for question in (
        Question(NR.TIMER_GETTIME, (entry.timer_id, OUT)), Question(NR.TIMER_GETOVERRUN, (entry.timer_id,)))]
    answers = asker.ask(questions)
    timers = []
    for entry, left, overrun in zip(entries, answers[::2], answers[1::2], strict=True):
        interval_s, interval_ns, value_s, value_ns = _ITIMERSPEC.unpack_from(left.out)
        notify = _SIGEV_THREAD_ID if entry.tid and entry.notify == "signal" else _NOTIFY[entry.notify]
        timers.append(PosixTimer(
            timer_id=entry.timer_id, clock=entry.clock, notify=notify, signal=entry.signal, tid=entry.tid,
            value=entry.value, value_ns=value_s * _NANOSECONDS + value_ns,
            interval_ns=interval_s * _NANOSECONDS + interval_ns, overrun=max(0, overrun.result)))
    return timers


def restart(timers: Sequence[PosixTimer], batch: Batch, tids: dict[int, int]) -> None:
    """Create the timers under their numbers (PR_TIMER_CREATE_RESTORE_IDS, 6.15) and arm them.

    Args:
        timers: the timers.
        batch: of the process, whose threads exist.
        tids: new number of each thread by the image's.
    """
    if not timers:
        return
    batch.call(NR.PRCTL, _PR_TIMER_CREATE_RESTORE_IDS, 1, what="choosing the numbers of timers")
    for timer in timers:
        event = batch.data(_SIGEVENT.pack(timer.value, timer.signal, timer.notify, tids.get(timer.tid, 0)))
        number = batch.data(struct.pack("<i4x", timer.timer_id))
        batch.call(NR.TIMER_CREATE, timer.clock, event, number, what=f"timer {timer.timer_id}")
    batch.call(NR.PRCTL, _PR_TIMER_CREATE_RESTORE_IDS, 0)


def arm(timers: Sequence[PosixTimer], batch: Batch) -> None:
    """Start the timers with what was left; time stood still for them since."""
    for timer in timers:
        if timer.value_ns:
            left = batch.data(_ITIMERSPEC.pack(*divmod(timer.interval_ns, _NANOSECONDS),
                                               *divmod(timer.value_ns, _NANOSECONDS)))
            batch.call(NR.TIMER_SETTIME, timer.timer_id, 0, left, 0)
