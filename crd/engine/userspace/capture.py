"""What is read of a target while it is stopped: everything small, and what a snapshot does not cover."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from crd.engine.userspace import credentials, limits, scheduling
from crd.engine.userspace.fds import table
from crd.engine.userspace.interrupted import begin_again
from crd.engine.userspace.mem import layout, pages
from crd.engine.userspace.questions import OUT, Question, TargetAsker
from crd.engine.userspace.sig import pending
from crd.engine.userspace.snapshot import stub_places
from crd.engine.userspace.timers import interval, posix
from crd.errors import TargetGone, TargetUnsupported, TraceeGone
from crd.image.profile import VMA_SHARED_MEMORY, IntervalTimer, PendingSignal, PosixTimer, ResourceLimit, Thread
from crd.native import tracee
from crd.native.inject import Injector
from crd.native.syscall import NR
from crd.target import procfs, task_obstacles

if TYPE_CHECKING:
    from crd.engine.userspace.freeze import Frozen, FrozenThread
    from crd.engine.userspace.objects import ObjectNumbers
    from crd.engine.userspace.questions import Answer
    from crd.engine.userspace.scheduling import Scheduling
    from crd.target.procfs import MapEntry, Stat, Status

PR_GET_PDEATHSIG, PR_GET_SECUREBITS, PR_GET_CHILD_SUBREAPER, PR_GET_TID_ADDRESS = 2, 27, 37, 40

_THREAD_QUESTIONS = [
    Question(NR.SIGALTSTACK, (0, OUT)),
    Question(NR.PRCTL, (PR_GET_TID_ADDRESS, OUT)),
    Question(NR.PRCTL, (PR_GET_PDEATHSIG, OUT)),
    Question(NR.PRCTL, (PR_GET_SECUREBITS,)),
]
_PROCESS_QUESTIONS = [Question(NR.PRCTL, (PR_GET_CHILD_SUBREAPER, OUT)), *interval.QUESTIONS]


@dataclass(frozen=True, slots=True)
class Known:
    """What may be read before the stop, since it is dear and hardly ever changes; ``holds`` says whether it has.

    Attributes:
        flags: VmFlags by start of the area.
        scheduling: by tid.
        limits: of the process; and the other attributes that administrators set.
    """

    flags: dict[int, str] = field(compare=False)
    scheduling: dict[int, Scheduling]
    limits: list[ResourceLimit]
    exe: str
    exe_device: int
    exe_inode: int
    oom_score_adj: int
    coredump_filter: int
    login_uid: int

    @property
    def wiped(self) -> set[int]:
        """Areas that a snapshot child does not have or sees empty (MADV_DONTFORK, MADV_WIPEONFORK)."""
        return {start for start, flags in self.flags.items() if {"dc", "wf"} & set(flags.split())}

    def holds(self, pid: int) -> bool:
        """Whether all but the flags still is as it was; of threads, those that there were and are."""
        now = _know(pid, {})
        there = self.scheduling.keys() & now.scheduling.keys()
        now, before = (replace(known, scheduling={tid: known.scheduling[tid] for tid in there})
                       for known in (now, self))
        return now == before


@dataclass(slots=True)
class Capture:
    """Everything but the pages that a snapshot has."""

    known: Known
    stat: Stat
    status: Status
    entries: list[MapEntry]
    files: table.FileTable
    subreaper: bool
    stopped_by: int
    state: str
    cwd: str
    root: str
    pending: list[PendingSignal] = field(default_factory=list)
    threads: list[tuple[Thread, list[PendingSignal]]] = field(default_factory=list)
    interval_timers: list[IntervalTimer] = field(default_factory=list)
    posix_timers: list[PosixTimer] = field(default_factory=list)
    shared: dict[tuple[int, int], pages.Copied] = field(default_factory=dict)
    clocks_ns: tuple[int, int, int] = (0, 0, 0)


def know(pid: int) -> Known:
    """Read it; while the target runs, threads may come and go meanwhile.

    Raises:
        TargetGone: it has ended.
    """
    return _know(pid, procfs.vm_flags(pid))


def _know(pid: int, flags: dict[int, str]) -> Known:
    threads = {}
    for tid in procfs.threads(pid):
        with suppress(TargetGone, TraceeGone):
            threads[tid] = scheduling.dump(pid, tid)
    exe = procfs.exe_stat(pid)
    return Known(
        flags=flags, scheduling=threads, limits=limits.dump(pid), exe=procfs.read_link(pid, "exe"),
        exe_device=exe.st_dev, exe_inode=exe.st_ino, oom_score_adj=procfs.number(pid, "oom_score_adj"),
        coredump_filter=procfs.hexadecimal(pid, "coredump_filter"), login_uid=procfs.number(pid, "loginuid"))


def injector(frozen: Frozen, entries: list[MapEntry]) -> Injector:
    """Find room for stubs in the target: the vdso first.

    Raises:
        FeatureMissing: there is none.
    """
    return Injector(frozen.memory, [(entry.start, entry.end) for entry in stub_places(entries)])


def capture(frozen: Frozen, entries: list[MapEntry], stubs: Injector, known: Known,
            objects: ObjectNumbers) -> Capture:
    """Read a stopped target.

    Raises:
        TargetUnsupported: it holds something that the preflight did not see.
        InjectionInterrupted: a signal came; let go and try again.
    """
    pid = frozen.pid
    asker = TargetAsker(stubs, pid, frozen.leader.registers)
    stats = {tid: procfs.stat(f"{pid}/task/{tid}") for tid in frozen.threads}
    statuses = {tid: procfs.status(f"{pid}/task/{tid}") for tid in frozen.threads}
    _refuse_what_came_since(pid, statuses)
    about_process = asker.ask(_PROCESS_QUESTIONS)
    found = Capture(
        known=known, stat=procfs.stat(pid), status=statuses[pid], entries=entries, files=table.dump(pid, objects),
        subreaper=bool(about_process[0].number(0, 4)),
        stopped_by=frozen.leader.stop.signal if frozen.leader.stop.is_group_stop else 0,
        state="S" if frozen.leader.registers.in_syscall else "R", cwd=procfs.read_link(pid, "cwd"),
        root=procfs.read_link(pid, "root"),
        pending=pending.dump_process(pid), interval_timers=interval.dump(about_process[1:]),
        clocks_ns=(time.time_ns(), time.clock_gettime_ns(time.CLOCK_MONOTONIC),
                   time.clock_gettime_ns(time.CLOCK_BOOTTIME)))
    if timers := procfs.posix_timers(pid):
        found.posix_timers = posix.dump(timers, asker)
    for entry in entries:
        if layout.kind(entry) == VMA_SHARED_MEMORY and (entry.device, entry.inode) not in found.shared:
            where = f"/proc/{pid}/map_files/{entry.start:x}-{entry.end:x}"
            found.shared[entry.device, entry.inode] = pages.copy_shared(where)
    for thread in frozen.threads.values():
        frozen.follow(stats[thread.tid])
        answers = TargetAsker(stubs, thread.tid, thread.registers).ask(_THREAD_QUESTIONS)
        record = _thread(frozen, thread, stats[thread.tid].comm, statuses[thread.tid], answers, known)
        found.threads.append((record, pending.dump_thread(thread)))
    frozen.follow(stats[pid])
    return found


def _refuse_what_came_since(pid: int, statuses: dict[int, Status]) -> None:
    """Look again at what may have changed since the preflight, before any stub is run.

    Raises:
        TargetUnsupported: a child, which the image would lack, or a seccomp filter, which would kill the target.
    """
    if found := [*task_obstacles.confinement(statuses), *task_obstacles.family(pid)]:
        raise TargetUnsupported(reasons=found, pid=pid)


def _thread(frozen: Frozen, thread: FrozenThread, comm: str, status: Status, answers: list[Answer],
            known: Known) -> Thread:
    tid = thread.tid
    who = credentials.dump(status)
    how = known.scheduling.get(tid) or scheduling.dump(frozen.pid, tid)
    altstack, clear_tid, death_signal, secure_bits = answers
    robust_list, robust_list_bytes = tracee.robust_list(tid)
    return Thread(
        tid=tid, comm=comm, registers=begin_again(thread.registers, frozen.memory).to_bytes(),
        xstate=tracee.get_xstate(tid), signal_mask=tracee.get_signal_mask(tid),
        altstack_address=altstack.number(0), altstack_flags=altstack.number(8, 4),
        altstack_bytes=altstack.number(16), robust_list=robust_list, robust_list_bytes=robust_list_bytes,
        clear_child_tid=clear_tid.number(), rseq_address=thread.rseq.address, rseq_bytes=thread.rseq.bytes,
        rseq_signature=thread.rseq.signature, parent_death_signal=death_signal.number(0, 4),
        uids=who.uids, gids=who.gids, groups=who.groups, capabilities=who.capabilities,
        secure_bits=max(0, secure_bits.result), no_new_privileges=who.no_new_privileges,
        personality=how.personality, timer_slack_ns=how.timer_slack_ns, policy=how.policy, policy_flags=how.flags,
        nice=how.nice, priority=how.priority, affinity=how.affinity, io_priority=how.io_priority, membarrier=0)
