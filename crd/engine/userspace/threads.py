"""Threads: made by the leader under their numbers, each then set up by itself."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from crd.engine.userspace import confinement, credentials, dispatch, numbers, scheduling, segmentation
from crd.engine.userspace.mem import policies
from crd.engine.userspace.sig import pending
from crd.errors import NativeError, RestartError
from crd.image.profile import Dispatch, ThreadDescriptors, ThreadPolicy
from crd.native import tracee
from crd.native.syscall import NR
from crd.native.tracee import Registers

if TYPE_CHECKING:
    from crd.engine.userspace.plan import Plan
    from crd.engine.userspace.vessel import Vessel
    from crd.image.profile import Capabilities, Thread

_CLONE_ARGS = struct.Struct("<11Q")
# VM | FS | FILES | SIGHAND | PTRACE | THREAD | SYSVSEM
_THREAD_FLAGS = 0x100 | 0x200 | 0x400 | 0x800 | 0x2000 | 0x10000 | 0x40000
_STACK = struct.Struct("<QI4xQ")
_SS_DISABLE, _SS_AUTODISARM = 2, 1 << 31
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_AT_ONCE = 256


def make(plan: Plan, vessel: Vessel, *, same_numbers: bool) -> dict[int, int]:
    """Make all threads but the leader; return the new number of each by the image's."""
    confinement.restart_common(plan, vessel)
    made = {plan.pid: vessel.pid}
    others = plan.threads[1:]
    for at in range(0, len(others), _AT_ONCE):
        some = others[at:at + _AT_ONCE]
        for thread in some:
            wanted = vessel.batch.data(struct.pack("<i4x", thread.tid))
            args = vessel.batch.data(_CLONE_ARGS.pack(
                _THREAD_FLAGS, 0, 0, 0, 0, 0, 0, 0, wanted if same_numbers else 0, int(same_numbers), 0))
            vessel.batch.call(NR.CLONE3, args, _CLONE_ARGS.size, what=f"making thread {thread.tid}")
        try:
            tids = vessel.run()
        except RestartError as error:
            if error.details.get("errno") == errno.EEXIST:
                numbers.await_free([thread.tid for thread in some], besides=vessel.pid)  # says who has it
            raise
        for thread, tid in zip(some, tids, strict=True):
            vessel.adopt(tid)
            made[thread.tid] = tid
    return made


def set_up(thread: Thread, plan: Plan, vessel: Vessel, tid: int) -> None:
    """Have a thread register what the kernel keeps of it, while it is still privileged."""
    scheduling.restart(thread, tid)
    batch = vessel.batch
    batch.call(NR.PERSONALITY, thread.personality)
    for policy in plan.of(ThreadPolicy):
        if policy.tid == thread.tid:
            policies.restart_thread(policy, batch)
    batch.call(NR.PRCTL, _PR_SET_NAME, batch.text(thread.comm))
    batch.call(NR.SET_TID_ADDRESS, thread.clear_child_tid)
    if thread.robust_list_bytes:
        batch.call(NR.SET_ROBUST_LIST, thread.robust_list, thread.robust_list_bytes)
    if not thread.altstack_flags & _SS_DISABLE and thread.altstack_bytes:
        stack = batch.data(_STACK.pack(thread.altstack_address, thread.altstack_flags & _SS_AUTODISARM,
                                       thread.altstack_bytes))
        batch.call(NR.SIGALTSTACK, stack, 0, what="sigaltstack")
    if thread.rseq_address:
        batch.call(NR.RSEQ, thread.rseq_address, thread.rseq_bytes, 0, thread.rseq_signature, what="rseq")
    pending.restart(plan.pending_of(thread.tid), batch, vessel.pid, tid)
    vessel.run(tid)


def become_itself(thread: Thread, plan: Plan, vessel: Vessel, tid: int, ours: Capabilities, *,
                  parent_stays: bool) -> None:
    """Give a thread its filters and credentials; it can make nothing any more that its image could not."""
    confinement.restart(thread, plan, vessel, tid)
    credentials.restart(thread, vessel.batch, ours)
    vessel.batch.call(NR.PRCTL, _PR_SET_PDEATHSIG, thread.parent_death_signal if parent_stays else 0)
    vessel.run(tid)


def set_registers(thread: Thread, plan: Plan, tid: int) -> None:
    """Put a thread where it was, to the last register; it makes no system call for us any more.

    Raises:
        RestartError: the kernel refuses these registers.
    """
    for record in plan.of(ThreadDescriptors):
        if record.tid == thread.tid:
            segmentation.restart_thread(record, tid)
    for asked in plan.of(Dispatch):
        if asked.tid == thread.tid:
            dispatch.restart(asked, tid)
    try:
        tracee.set_xstate(tid, thread.xstate)
        tracee.set_registers(tid, Registers.from_bytes(thread.registers))
        tracee.set_signal_mask(tid, thread.signal_mask)
    except NativeError as error:
        raise RestartError(f"the registers of thread {thread.tid}: {error.message}") from error
