"""How a thread is scheduled: policy, nice, priority, affinity, memory nodes, I/O priority, timer slack, personality."""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.engine.userspace.mem import policies
from crd.errors import NativeError, RestartUnsupported, TargetGone
from crd.native.syscall import NR, syscall
from crd.target import procfs

if TYPE_CHECKING:
    from crd.image.profile import Thread

_ATTRIBUTES = struct.Struct("<IIQiIQQQ")  # struct sched_attr, version 0 (sched_setattr(2))
_IOPRIO_WHO_PROCESS = 1
_SCHED_DEADLINE = 6


@dataclass(frozen=True, slots=True)
class Scheduling:
    """Of one thread."""

    policy: int
    flags: int
    nice: int
    priority: int
    affinity: bytes
    io_priority: int
    timer_slack_ns: int
    personality: int
    memory_policy: str


def dump(pid: int, tid: int) -> Scheduling:
    """Ask the kernel from outside.

    Raises:
        TargetGone, TraceeGone: the thread has ended.
    """
    buffer = bytearray(_ATTRIBUTES.size)
    syscall(NR.SCHED_GETATTR, tid, buffer, len(buffer), 0)
    _size, policy, flags, nice, priority, *_ = _ATTRIBUTES.unpack(buffer)
    try:
        mask = sum(1 << cpu for cpu in os.sched_getaffinity(tid))
    except ProcessLookupError as error:
        raise TargetGone(f"thread {tid} is gone", pid=pid) from error
    return Scheduling(policy, flags, nice, priority, mask.to_bytes((mask.bit_length() + 7) // 8, "little"),
                      syscall(NR.IOPRIO_GET, _IOPRIO_WHO_PROCESS, tid),
                      int(procfs.read(tid, "timerslack_ns")),
                      int(procfs.read(f"{pid}/task/{tid}", "personality"), 16), policies.of_thread(pid, tid))


def check(thread: Thread) -> None:
    """Make sure that the image has all that the policy needs.

    Raises:
        RestartUnsupported: it has not.
    """
    if thread.policy == _SCHED_DEADLINE:
        raise RestartUnsupported(f"thread {thread.tid} is scheduled by SCHED_DEADLINE, whose parameters no image has")


def restart(thread: Thread, tid: int) -> None:
    """Set it from outside, while the task is still privileged.

    Raises:
        RestartUnsupported: the policy may not be set.
    """
    cpus = {cpu for cpu in range(len(thread.affinity) * 8) if thread.affinity[cpu // 8] >> cpu % 8 & 1}
    with suppress(OSError):  # CPUs that this host does not have
        os.sched_setaffinity(tid, cpus)
    with suppress(OSError), open(f"/proc/{tid}/timerslack_ns", "w") as file:
        file.write(str(thread.timer_slack_ns))
    try:
        syscall(NR.IOPRIO_SET, _IOPRIO_WHO_PROCESS, tid, thread.io_priority)
        attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, thread.policy, thread.policy_flags, thread.nice,
                                      thread.priority, 0, 0, 0)
        syscall(NR.SCHED_SETATTR, tid, attributes, 0)
        os.setpriority(os.PRIO_PROCESS, tid, thread.nice)  # SCHED_IDLE keeps a nice value that sched_setattr ignores
    except (NativeError, PermissionError) as error:
        raise RestartUnsupported(f"the scheduling of thread {thread.tid}: {error}",
                                 hint="Restart with the privileges the program had.") from error
