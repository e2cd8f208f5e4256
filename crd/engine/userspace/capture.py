"""What is read of a target while it is stopped: everything small, and what a snapshot does not cover."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from crd.engine.userspace import (
    attributes,
    confinement,
    credentials,
    dispatch,
    limits,
    machine,
    scheduling,
    segmentation,
)
from crd.engine.userspace.attributes import Attributes
from crd.engine.userspace.fds import unnamed
from crd.engine.userspace.interrupted import begin_again, returned
from crd.engine.userspace.interview import Asked, Questionnaire
from crd.engine.userspace.mem import guards, little, policies
from crd.engine.userspace.mem.areas import Areas
from crd.engine.userspace.questions import OUT, Question, TargetAsker
from crd.engine.userspace.sig import pending
from crd.engine.userspace.timers import interval, posix
from crd.errors import NativeError, Obstacle, TargetGone, TargetUnsupported, TraceeGone
from crd.image.profile import IntervalTimer, PendingSignal, PosixTimer, ResourceLimit, Thread
from crd.native.inject import Injector
from crd.native.syscall import NR, kcmp
from crd.target import procfs
from crd.target.paths import DELETED

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from crd.engine.userspace.caller import Caller
    from crd.engine.userspace.confinement import Confined
    from crd.engine.userspace.fds.table import FileTable
    from crd.engine.userspace.freeze import Frozen
    from crd.engine.userspace.interview import Interview
    from crd.engine.userspace.mem.layout import MappedObjects
    from crd.engine.userspace.mem.runs import Run
    from crd.engine.userspace.outside import Outside
    from crd.engine.userspace.scheduling import Scheduling
    from crd.image.codec import Record
    from crd.image.profile import LocalDescriptors
    from crd.native.memory import Memory
    from crd.native.threads import ThreadGroup
    from crd.target.procfs import Stat, Status

PR_GET_PDEATHSIG, PR_GET_SECUREBITS, PR_GET_CHILD_SUBREAPER, PR_GET_TID_ADDRESS = 2, 27, 37, 40

_YOUNG_SECONDS = 1.0
_KCMP_VM, _KCMP_FILES, _KCMP_FS = 1, 2, 3

_THREAD_QUESTIONS = [
    Question(NR.SIGALTSTACK, (0, OUT)),
    Question(NR.PRCTL, (PR_GET_TID_ADDRESS, OUT)),
    Question(NR.PRCTL, (PR_GET_PDEATHSIG, OUT)),
    Question(NR.PRCTL, (PR_GET_SECUREBITS,)),
]
_PROCESS_QUESTIONS = [Question(NR.PRCTL, (PR_GET_CHILD_SUBREAPER, OUT)), *interval.QUESTIONS]
_QUESTIONNAIRES = {
    (everything, curious): Questionnaire([*_THREAD_QUESTIONS, *(machine.QUESTIONS if curious else [])],
                                         [*_PROCESS_QUESTIONS, *([segmentation.QUESTION] if curious else []),
                                          *(attributes.QUESTIONS if everything else [])])
    for everything in (False, True) for curious in (False, True)}
"""With what a snapshot child could be asked later, or not; with what a filter of seccomp(2) may forbid, or not."""


@dataclass(frozen=True, slots=True)
class Known:
    """What may be read before the stop, since it is dear and hardly ever changes; ``holds`` says whether it has.

    Attributes:
        flags: VmFlags by start of the area.
        wiped: areas that a snapshot child does not have or sees empty (MADV_DONTFORK, MADV_WIPEONFORK).
        maps, entries: text and areas.
        own_bytes: as of ``little.own_bytes``.
        apart: start time of the process, and the parent with which it shares nothing; see ``_apart``.
        scheduling: by tid.
        guards: guard regions outside of private memory.
        limits: of the process; and the other attributes that administrators set.
    """

    flags: dict[int, str] = field(compare=False)
    wiped: set[int] = field(compare=False)
    maps: str = field(compare=False)
    entries: Areas = field(compare=False)
    own_bytes: int = field(compare=False)
    apart: tuple[int, int] | None = field(compare=False)
    scheduling: dict[int, Scheduling]
    guards: list[Run]
    limits: list[ResourceLimit]
    exe: str
    exe_device: int
    exe_inode: int
    oom_score_adj: int
    coredump_filter: int
    login_uid: int
    auxv: bytes

    def areas(self, pid: int, maps: str) -> Areas:
        """Return the areas of maps, which hardly ever change."""
        return self.entries if maps == self.maps else Areas(procfs.parsed_maps(pid, maps))

    def holds(self, pid: int) -> bool:
        """Whether all but the areas still is as it was; of threads, those that there were and are."""
        now = _know(pid, self.areas(pid, procfs.read(pid, "maps")))
        there = self.scheduling.keys() & now.scheduling.keys()
        now, before = (replace(known, scheduling={tid: known.scheduling[tid] for tid in there})
                       for known in (now, self))
        return now == before


@dataclass(frozen=True, slots=True)
class Shared:
    """What a process shares with its parent (clone(2)): the file table; working directory, root and umask."""

    files: bool
    directories: bool


@dataclass(slots=True)
class Capture:
    """Everything of a process but the pages that a snapshot has."""

    pid: int
    known: Known
    stat: Stat
    confined: Confined
    group: ThreadGroup
    told: Interview
    asked_everything: bool
    scheduling: dict[int, Scheduling]
    entries: Areas
    shared: Shared
    stopped_by: int
    state: str
    cwd: str
    root: str
    pending: list[PendingSignal]
    queues: dict[int, list[PendingSignal]]
    posix_timers: list[PosixTimer] = field(default_factory=list)
    unnamed: dict[int, int] = field(default_factory=dict)  # objref of a file without a name, by start of the area
    cwd_object: int = 0
    local_descriptors: LocalDescriptors | None = None

    @property
    def subreaper(self) -> bool:
        """Whether it adopts orphans."""
        return bool(self.told.of_process(1)[0].number(0, 4))

    @property
    def interval_timers(self) -> list[IntervalTimer]:
        """What was left of them."""
        return interval.dump(self.told.of_process(len(_PROCESS_QUESTIONS))[1:])

    def attributes(self) -> Attributes:
        """Return what it said of itself, having been asked everything."""
        return Attributes.told(self.told.of_process(None)[-len(attributes.QUESTIONS):])

    def oddities(self, tid: int) -> Iterator[Record]:
        """Return the records of a thread that hardly any has."""
        asked = machine.dump(tid, self.told.of_thread(tid)[len(_THREAD_QUESTIONS):])
        yield from filter(None, (asked, dispatch.dump(self.group, tid), segmentation.dump_thread(self.group, tid)))

    def status(self, tid: int) -> Status:
        """Return the status of a thread in the stop."""
        return self.confined.statuses.get(tid) or procfs.parsed_status(self.group.status(tid))


def know(pid: int) -> Known:
    """Read it; while the target runs, threads may come and go meanwhile.

    Raises:
        TargetGone: it has ended.
    """
    maps = procfs.read(pid, "maps")
    flags = policies.vm_flags(pid)
    wiped = {start for start, words in flags.items() if {"dc", "wf"} & set(words.split())}
    entries = Areas(procfs.parsed_maps(pid, maps)).work_out()
    return replace(_know(pid, entries), flags=flags, wiped=wiped, maps=maps, entries=entries,
                   own_bytes=little.own_bytes(procfs.read(pid, "status")), apart=_apart(pid))


def is_young(pid: int) -> bool:
    """Whether a process began so recently that it may not have come to rest."""
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - procfs.stat(pid).start_time / os.sysconf("SC_CLK_TCK")
    return age < _YOUNG_SECONDS


def _know(pid: int, entries: Areas) -> Known:
    threads = {}
    for tid in procfs.threads(pid):
        with suppress(TargetGone, TraceeGone):
            threads[tid] = scheduling.dump(pid, tid)
    exe = procfs.link_stat(pid, "exe")
    return Known(
        flags={}, wiped=set(), maps="", entries=Areas(), own_bytes=-1, apart=None, scheduling=threads,
        guards=guards.of_files(pid, entries), limits=limits.dump(pid),
        exe=procfs.read_link(pid, "exe"),
        exe_device=exe.st_dev, exe_inode=exe.st_ino, oom_score_adj=procfs.number(pid, "oom_score_adj"),
        coredump_filter=procfs.hexadecimal(pid, "coredump_filter"), login_uid=procfs.number(pid, "loginuid"),
        auxv=procfs.read_bytes(pid, "auxv"))


def injector(frozen: Frozen, entries: Areas) -> Injector:
    """Find room for stubs in the target: the vdso first.

    Raises:
        FeatureMissing: there is none.
    """
    return Injector(frozen.memory, [(entry.start, entry.end) for entry in entries.stub_places])


def asked(frozen: Frozen, entries: Areas, stubs: Injector, confined: Confined, *, everything: bool) -> Asked:
    """Decide what a stopped process is asked.

    Args:
        frozen: the process.
        entries: its areas.
        stubs: for system calls in it.
        confined: what seccomp(2) keeps it from.
        everything: ask it also what a snapshot child could be asked later.

    Raises:
        TargetUnsupported: it may not answer.
    """
    curious = not confined.forbids([*machine.QUESTIONS, segmentation.QUESTION])
    questions = _QUESTIONNAIRES[everything, curious]
    confined.need([*questions.about_thread, *questions.about_process])
    return Asked(frozen, stubs, entries, questions, at_once=not confined.forbids(confinement.SURVEY))


def capture(asked: Asked, known: Known, seen: Outside, shared: Shared, mapped: MappedObjects,
            confined: Confined) -> Capture:
    """Read a stopped process.

    Args:
        asked: the process, and what it has been asked.
        known: what was read before.
        seen: of it in the stop.
        shared: with its parent.
        mapped: the objects of all processes.
        confined: what seccomp(2) keeps it from.

    Raises:
        TargetUnsupported: it holds something that the preflight did not see.
        InjectionInterrupted: a signal came; let go and try again.
    """
    frozen, entries = asked.state, asked.entries
    pid = frozen.pid
    assert asked.told  # noqa: S101
    found = Capture(
        pid=pid, known=known, stat=seen.stat, confined=confined, group=frozen.group, told=asked.told,
        asked_everything=len(asked.questions.about_process) > len(attributes.QUESTIONS), entries=entries,
        scheduling={tid: known.scheduling.get(tid) or scheduling.dump(pid, tid) for tid in frozen.threads},
        shared=shared,
        stopped_by=frozen.leader.stop.signal if frozen.leader.stop.is_group_stop else 0,
        state="S" if frozen.registers.in_syscall else "R", cwd=seen.cwd, root=seen.root,
        pending=pending.dump_process(pid),
        queues={tid: pending.dump_thread(tid) for tid in frozen.threads if frozen.group.is_queued(tid)})
    if seen.posix_timers:
        confined.need(posix.ANY_QUESTIONS)
        found.posix_timers = posix.dump(seen.posix_timers, TargetAsker(asked.stubs, pid, frozen.registers))
    if len(asked.questions.about_thread) > len(_THREAD_QUESTIONS):
        has_table = asked.told.of_process(len(_PROCESS_QUESTIONS) + 1)[-1]
        found.local_descriptors = segmentation.dump(has_table, asked.stubs, pid, frozen.registers)
    for entry in entries.shared:
        mapped.note(pid, entry)
    return found


def add_unnamed(captured: Capture, files: FileTable) -> None:
    """Note the files that a stopped process maps or works in, and whose content travels, beside those it has open."""
    for entry in captured.entries.files if files.named else captured.entries.deleted:
        if entry.deleted or (entry.device, entry.inode) in files.named:
            objref = unnamed.dump_mapped(files, captured.pid, entry)
            if objref:
                captured.unnamed[entry.start] = objref
    if captured.cwd.endswith(DELETED):
        captured.cwd_object = unnamed.dump_directory(files, f"/proc/{captured.pid}/cwd")


def _apart(pid: int) -> tuple[int, int] | None:
    """Return the start time of a process and its parent if they share nothing: they never will, then (clone(2))."""
    stat = procfs.stat(pid)
    with suppress(NativeError):  # it is not ours to look at
        if not any(_common(pid, stat.parent_pid)):
            return stat.start_time, stat.parent_pid
    return None


def _common(pid: int, parent: int) -> Iterator[bool]:
    """Say whether a process shares memory, file table, and directories with its parent."""
    return (not kcmp(pid, parent, what) for what in (_KCMP_VM, _KCMP_FILES, _KCMP_FS))


def shared(pid: int, known: Known | None, seen: Outside, relatives: Container[int]) -> Shared:
    """Say what a stopped process, to which nothing has been done yet, shares with its parent.

    Args:
        pid: of the process.
        known: what was read before the stop, if anything was.
        seen: of it in the stop.
        relatives: pids of all processes.

    Raises:
        TargetUnsupported: memory, in which the stubs of both would meet.
    """
    parent = seen.stat.parent_pid
    if parent not in relatives or (known and known.apart == (seen.stat.start_time, parent)):
        return Shared(files=False, directories=False)
    memory, files, directories = _common(pid, parent)
    if memory:
        raise TargetUnsupported(reasons=[Obstacle(
            "task.shared", f"pid {pid}", f"shares its memory with pid {parent}, which crd cannot save yet")])
    return Shared(files, directories)


def threads(captured: Capture, memory: Memory, caller: Caller | None) -> list[Thread]:
    """Return the records of all threads, the leader's first; the target may run again by now.

    Args:
        captured: in the stop.
        memory: of the target, for the code around calls that were interrupted.
        caller: a thread that waits for this checkpoint, and sees 0 when it is restarted.
    """
    found = [_thread(captured, tid, memory) for tid in captured.group.tids]
    for thread in found:
        if caller and thread.tid == caller.tid:
            thread.registers = returned(captured.group.registers(thread.tid), 0).to_bytes()
    return found


def _thread(captured: Capture, tid: int, memory: Memory) -> Thread:
    state = captured.group.state(tid)
    status = captured.status(tid)
    who = credentials.dump(status)
    how = captured.scheduling[tid]
    altstack, clear_tid, death_signal, secure_bits, *_ = captured.told.of_thread(tid)
    return Thread(
        tid=tid, comm=status.comm, registers=begin_again(captured.group.registers(tid), memory).to_bytes(),
        xstate=state.xstate, signal_mask=state.signal_mask,
        altstack_address=altstack.number(0), altstack_flags=altstack.number(8, 4),
        altstack_bytes=altstack.number(16), robust_list=state.robust_list, robust_list_bytes=state.robust_list_bytes,
        clear_child_tid=clear_tid.number(), rseq_address=state.rseq.address, rseq_bytes=state.rseq.bytes,
        rseq_signature=state.rseq.signature, parent_death_signal=death_signal.number(0, 4),
        uids=who.uids, gids=who.gids, groups=who.groups, capabilities=who.capabilities,
        secure_bits=max(0, secure_bits.result), no_new_privileges=who.no_new_privileges,
        personality=how.personality, timer_slack_ns=how.timer_slack_ns, policy=how.policy, policy_flags=how.flags,
        nice=how.nice, priority=how.priority, affinity=how.affinity, io_priority=how.io_priority, membarrier=0)
