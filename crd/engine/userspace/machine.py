"""What a thread has asked of the machine under it: instructions that fault, speculation, errors of memory.

All are asked of the thread itself, since the kernel shows none of them to others.  Where a filter of seccomp(2) forbids
to ask, they are taken to be what they are at first.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crd.engine.userspace.questions import OUT, Question
from crd.image.profile import Machine
from crd.native.syscall import NR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.engine.userspace.questions import Answer
    from crd.engine.userspace.vessel import Vessel

_PR_GET_TSC, _PR_SET_TSC, _PR_MCE_KILL, _PR_MCE_KILL_GET = 25, 26, 33, 34
_PR_GET_SPECULATION, _PR_SET_SPECULATION, _PR_SET_IO_FLUSHER, _PR_GET_IO_FLUSHER = 52, 53, 57, 58
_ARCH_GET_CPUID, _ARCH_SET_CPUID = 0x1011, 0x1012
_MCE_KILL_SET, _MCE_KILL_DEFAULT = 1, 2
_TSC_ENABLE = 1
_SPEC_PRCTL = 1
"""A thread may choose; the other bits say what it is (PR_GET_SPECULATION_CTRL(2const))."""
_SPEC_AT_FIRST = (2, 2, 4)
"""PR_SPEC_ENABLE for PR_SPEC_STORE_BYPASS and PR_SPEC_INDIRECT_BRANCH, PR_SPEC_DISABLE for PR_SPEC_L1D_FLUSH."""

QUESTIONS = [
    Question(NR.PRCTL, (_PR_GET_TSC, OUT)),
    Question(NR.ARCH_PRCTL, (_ARCH_GET_CPUID, 0)),
    Question(NR.PRCTL, (_PR_MCE_KILL_GET, 0, 0, 0, 0)),
    Question(NR.PRCTL, (_PR_GET_IO_FLUSHER, 0, 0, 0, 0)),
    *(Question(NR.PRCTL, (_PR_GET_SPECULATION, what, 0, 0, 0)) for what in range(len(_SPEC_AT_FIRST))),
]


def dump(tid: int, answers: Sequence[Answer]) -> Machine | None:
    """Understand the answers of a thread to QUESTIONS; None if it is all as it is at first, or was not asked."""
    if not answers:
        return None
    tsc, cpuid, errors, flusher, *speculation = answers
    found = Machine(
        tid=tid, time_stamps=tsc.number(0, 4) or _TSC_ENABLE, cpuid=cpuid.result != 0,
        memory_errors=_MCE_KILL_DEFAULT if errors.result < 0 else errors.result, io_flusher=flusher.result > 0,
        speculation=[one.result & ~_SPEC_PRCTL if one.result > 0 and one.result & _SPEC_PRCTL else 0
                     for one in speculation])
    chosen = any(now not in {0, first} for now, first in zip(found.speculation, _SPEC_AT_FIRST, strict=True))
    is_plain = (found.time_stamps == _TSC_ENABLE and found.cpuid and found.memory_errors == _MCE_KILL_DEFAULT
                and not found.io_flusher)
    return None if is_plain and not chosen else found


def restart(record: Machine, vessel: Vessel, tid: int) -> list[str]:
    """Have a thread ask for it again while it is privileged; return what it does not get, a sentence each."""
    wishes: list[tuple[str, int, tuple[int, ...]]] = [
        ("its choice whether rdtsc faults", NR.PRCTL, (_PR_SET_TSC, record.time_stamps))]
    if not record.cpuid:
        wishes.append(("cpuid that faults", NR.ARCH_PRCTL, (_ARCH_SET_CPUID, 0)))
    if record.memory_errors != _MCE_KILL_DEFAULT:
        wishes.append(("its choice when errors of memory kill it", NR.PRCTL,
                       (_PR_MCE_KILL, _MCE_KILL_SET, record.memory_errors, 0, 0)))
    if record.io_flusher:
        wishes.append(("the rank of an I/O flusher", NR.PRCTL, (_PR_SET_IO_FLUSHER, 1, 0, 0, 0)))
    wishes += [("its choice of speculation", NR.PRCTL, (_PR_SET_SPECULATION, what, how, 0, 0))
               for what, how in enumerate(record.speculation) if how]
    for _, number, arguments in wishes:
        vessel.batch.call(number, *arguments, check=False)
    return [f"thread {record.tid} does not get {what}: {os.strerror(-result)}"
            for (what, *_), result in zip(wishes, vessel.run(tid), strict=True) if result < 0]
