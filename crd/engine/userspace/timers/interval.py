"""setitimer(2): what is left of each of the three timers.

The kernel starts a periodic ITIMER_REAL again when its SIGALRM is taken; as long as that is pending nothing is left of
it, but it has its interval.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from crd.engine.userspace.questions import OUT, Question
from crd.image.profile import IntervalTimer
from crd.native.syscall import NR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.engine.userspace.questions import Answer
    from crd.native.batch import Batch

_ITIMERVAL = struct.Struct("<4q")  # interval, value: seconds, microseconds
_MICROSECONDS = 1_000_000

QUESTIONS = [Question(NR.GETITIMER, (which, OUT)) for which in range(3)]


def dump(answers: Sequence[Answer]) -> list[IntervalTimer]:
    """Turn the answers to QUESTIONS into the timers that are armed, or will be once their signal is taken."""
    timers = []
    for which, answer in enumerate(answers):
        interval_s, interval_us, value_s, value_us = _ITIMERVAL.unpack_from(answer.out)
        if any((interval_s, interval_us, value_s, value_us)):
            timers.append(IntervalTimer(which=which, value_us=value_s * _MICROSECONDS + value_us,
                                        interval_us=interval_s * _MICROSECONDS + interval_us))
    return timers


def restart(timers: Sequence[IntervalTimer], batch: Batch) -> None:
    """Arm the timers with what was left; time stood still for them since."""
    for timer in timers:
        left = timer.value_us or timer.interval_us
        value = batch.data(_ITIMERVAL.pack(*divmod(timer.interval_us, _MICROSECONDS), *divmod(left, _MICROSECONDS)))
        batch.call(NR.SETITIMER, timer.which, value, 0)
