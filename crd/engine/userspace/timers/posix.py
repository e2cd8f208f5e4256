"""timer_create(2): timers under their numbers, with what is left of each."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from crd.engine.userspace.questions import OUT, Question
from crd.errors import NativeError, RestartUnsupported
from crd.image.profile import PosixTimer
from crd.native.syscall import NR, syscall

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crd.engine.userspace.questions import Asker
    from crd.engine.userspace.vessel import Vessel
    from crd.target.procfs import PosixTimerEntry

_ITIMERSPEC = struct.Struct("<4q")  # interval, value: seconds, nanoseconds
_SIGEVENT = struct.Struct("<QiiI44x")
_NANOSECONDS = 1_000_000_000
_NOTIFY = {"signal": 0, "none": 1, "thread": 2}
_SIGEV_NONE, _SIGEV_THREAD_ID = 1, 4
_PR_TIMER_CREATE_RESTORE_IDS, _OFF, _ON, _GET = 77, 0, 1, 2
_IN_TURN_MAX = 1 << 16
_SPARE = PosixTimer(timer_id=0, clock=1, notify=_SIGEV_NONE, signal=0, tid=0, value=0, value_ns=0, interval_ns=0,
                    overrun=0)
ANY_QUESTIONS = [Question(NR.TIMER_GETTIME, (OUT, OUT)), Question(NR.TIMER_GETOVERRUN, (OUT,))]
"""What is asked about any timer."""


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


def check(timers: Sequence[PosixTimer]) -> None:
    """Make sure that the numbers can be had.

    Raises:
        RestartUnsupported: one is so high that this kernel would have to be asked for too many timers before.
    """
    highest = max((timer.timer_id for timer in timers), default=0)
    if highest >= _IN_TURN_MAX and not can_choose_numbers():
        raise RestartUnsupported(f"timer {highest} of the image has too high a number for this kernel",
                                 hint="Linux 6.15 and later can choose the numbers of timers.")


def can_choose_numbers() -> bool:
    """Whether the kernel has PR_TIMER_CREATE_RESTORE_IDS (6.15)."""
    try:
        syscall(NR.PRCTL, _PR_TIMER_CREATE_RESTORE_IDS, _GET, 0, 0, 0)
    except NativeError:
        return False
    return True


def restart(timers: Sequence[PosixTimer], vessel: Vessel, tids: Mapping[int, int], *, choose: bool) -> None:
    """Create the timers under their numbers.

    Args:
        timers: the timers.
        vessel: the process, whose threads exist.
        tids: new number of each thread by the image's.
        choose: have the kernel take the numbers wanted; else it gives them out in turn, and those between are deleted.
    """
    batch, wanted = vessel.batch, {timer.timer_id: timer for timer in timers}
    if choose and wanted:
        batch.call(NR.PRCTL, _PR_TIMER_CREATE_RESTORE_IDS, _ON, 0, 0, 0, what="choosing the numbers of timers")
    for number in sorted(wanted) if choose else range(max(wanted, default=-1) + 1):
        timer = wanted.get(number, _SPARE)
        event = batch.data(_SIGEVENT.pack(timer.value, timer.signal, timer.notify, tids.get(timer.tid, 0)))
        created = batch.data(struct.pack("<i4x", number))
        batch.call(NR.TIMER_CREATE, timer.clock, event, created, what=f"timer {number}")
        if number not in wanted:
            batch.call(NR.TIMER_DELETE, number, what=f"spare timer {number}")
        vessel.flush()
    if choose and wanted:
        batch.call(NR.PRCTL, _PR_TIMER_CREATE_RESTORE_IDS, _OFF, 0, 0, 0)
    for number in wanted:
        batch.call(NR.TIMER_GETOVERRUN, number, what=f"timer {number}")
        vessel.flush()


def arm(timers: Sequence[PosixTimer], vessel: Vessel) -> None:
    """Start the timers with what was left; time stood still for them since."""
    batch = vessel.batch
    for timer in timers:
        vessel.flush()
        if timer.value_ns:
            left = batch.data(_ITIMERSPEC.pack(*divmod(timer.interval_ns, _NANOSECONDS),
                                               *divmod(timer.value_ns, _NANOSECONDS)))
            batch.call(NR.TIMER_SETTIME, timer.timer_id, 0, left, 0)
