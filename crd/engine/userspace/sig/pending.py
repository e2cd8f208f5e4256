"""Signals that are queued and not delivered yet."""

from __future__ import annotations

import signal
import struct
from typing import TYPE_CHECKING

from crd.image.profile import PendingSignal
from crd.native import tracee
from crd.native.syscall import NR

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crd.native.batch import Batch

SIGINFO_BYTES = 128
_NUMBER_AND_CODE = struct.Struct("<i4xi")
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


def dump_process(tid: int) -> list[PendingSignal]:
    """Return the queue that all threads share."""
    return [PendingSignal(tid=0, siginfo=info) for info in tracee.peek_siginfo(tid, shared=True)]


def dump_thread(tid: int) -> list[PendingSignal]:
    """Return the queue of one thread."""
    return [PendingSignal(tid=tid, siginfo=info) for info in tracee.peek_siginfo(tid, shared=False)]


def restart(records: Iterable[PendingSignal], batch: Batch, pid: int, tid: int) -> None:
    """Queue signals again; only the task itself may with any si_code (rt_sigqueueinfo(2)), and with all blocked.

    Not those of faults: the thread stands before the instruction, which it executes again, and faults again.  If one
    was queued, the kernel would deliver it although it is blocked, together with the SIGTRAP that ends a batch
    (dequeue_synchronous_signal() of kernel/signal.c, Linux 5.0).
    """
    for record in records:
        number, code = _NUMBER_AND_CODE.unpack_from(record.siginfo)
        if record.tid and number in _FAULTS and code > 0:
            continue
        info = batch.data(record.siginfo)
        if record.tid:
            batch.call(NR.RT_TGSIGQUEUEINFO, pid, tid, number, info, what=f"queueing signal {number}")
        else:
            batch.call(NR.RT_SIGQUEUEINFO, pid, number, info, what=f"queueing signal {number}")
