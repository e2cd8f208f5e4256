"""Obstacles in what a process is: its state, who traces it, its family, its namespaces."""

from __future__ import annotations

import os
import struct
import time
from contextlib import suppress
from functools import cmp_to_key
from typing import TYPE_CHECKING, Protocol

from crd.errors import NativeError, Obstacle, TargetError, TargetGone
from crd.target import procfs
from crd.target.cgroups import frozen_cgroup
from crd.target.model import SECCOMP_FILTER, SECCOMP_STRICT
from crd.target.wording import process_name, process_names
from crd.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crd.target.model import Status
    from crd.target.tree import Family

STUCK_SECONDS = 0.25
_STUCK_POLL_SECONDS = 0.01
_VFORK_CALLS = {"56", "58", "435"}  # clone, vfork, clone3
_KCMP_KINDS = {1: "memory", 2: "file descriptors", 3: "working directory and umask", 4: "signal handlers"}
_KCMP_FILES, _KCMP_FS = 2, 3
_LOOKS = 25
_LOOK_AGAIN_SECONDS = 0.02
_CAP_SYS_ADMIN = 21


class Kcmp(Protocol):
    """kcmp(2), as ``crd.native.syscall.Kcmp`` makes it."""

    def __call__(self, pid1: int, pid2: int, kind: int, index1: int = 0, index2: int | bytes = 0, /) -> int:
        """Compare: 0 if two tasks share the object; raises NativeError."""
        ...

    def places(self, kind: int, groups: Sequence[int], pids: Sequence[int], /) -> Sequence[int]:
        """Find which of some processes, in the kernel's order, each of many others shares the object with."""
        ...


def thread_statuses(pid: int) -> dict[int, Status]:
    """Return the status of every thread that does not end just now."""
    statuses = {}
    for tid in procfs.threads(pid):
        with suppress(TargetGone):
            statuses[tid] = procfs.status(f"{pid}/task/{tid}")
    return statuses


def fatal(pid: int) -> Obstacle | None:
    """Return what makes every further look pointless: no user process, or one that has ended."""
    stat, status = procfs.stat(pid), procfs.status(pid)
    if status.process_id != pid:
        return Obstacle("task.thread", f"pid {pid}", f"is a thread of {process_name(status.process_id)}",
                        f"Name the process: {status.process_id}.")
    if stat.is_kernel_thread:
        return Obstacle("task.kernel-thread", process_name(pid), "is a kernel thread, which has no image",
                        "Choose a user process.")
    if stat.state in "ZX":
        alive = len(procfs.threads(pid)) > 1
        reason = "has lost its main thread (the others live on)" if alive else "has ended and waits for its parent"
        return Obstacle("task.zombie", process_name(pid), reason, f"Its parent is {process_name(stat.parent_pid)}.")
    return None


def kinship(pid: int) -> Iterator[Obstacle]:
    """Find out whether crd itself would be stopped."""
    ancestor = os.getpid()
    while ancestor:
        if ancestor == pid:
            who = "is crd itself" if pid == os.getpid() else "is an ancestor of this crd process"
            yield Obstacle("task.self", process_name(pid), f"{who}, which cannot stop it and go on",
                           "Let the daemon do it, or run crd from another session.")
        try:
            ancestor = procfs.stat(ancestor).parent_pid
        except TargetError:
            return


def tracing(statuses: dict[int, Status]) -> Iterator[Obstacle]:
    """Find tracers; only one may be attached to a thread."""
    tracers = {status.tracer_pid: tid for tid, status in statuses.items() if status.tracer_pid}
    for tracer, tid in tracers.items():
        yield Obstacle("task.traced", f"thread {tid}", f"is traced by {process_name(tracer)}",
                       "End the debugger or tracer, or detach it.")


def architecture(pid: int) -> Iterator[Obstacle]:
    """Recognise 32-bit tasks by their auxiliary vector: read as 64-bit words its keys are absurd."""
    vector = procfs.read_bytes(pid, "auxv")
    keys = [key for key, _ in struct.iter_unpack("<QQ", vector[:len(vector) // 16 * 16])]
    if any(key >> 32 for key in keys):
        yield Obstacle("task.32-bit", process_name(pid), "is a 32-bit program", "Run a 64-bit build of it.")


def freezing(pid: int, statuses: dict[int, Status]) -> Iterator[Obstacle]:
    """Find what keeps threads from being stopped: a frozen cgroup, vfork, an uninterruptible wait."""
    if cgroup := frozen_cgroup(pid):
        yield Obstacle("task.frozen", f"cgroup {printable(cgroup)}", "is frozen, so nothing can run in the target",
                       "Thaw the cgroup (cgroup.freeze = 0, freezer.state = THAWED).")
        return
    for tid in _stuck_threads(pid, statuses):
        if _call_of(pid, tid) in _VFORK_CALLS:
            yield Obstacle("task.vfork", f"thread {tid}", "waits in vfork for its child to execute a program",
                           "Try again when the child has executed its program or ended.")
        else:
            yield Obstacle("task.uninterruptible", f"thread {tid}",
                           "is in an uninterruptible wait (state D), mostly for a disk or a network file system",
                           "Try again when the device or server answers.")


def _stuck_threads(pid: int, statuses: dict[int, Status]) -> list[int]:
    """Return the threads that stay in one uninterruptible wait; short ones are everyday disk reads."""
    waiting = {tid: status for tid, status in statuses.items() if status.state == "D"}
    deadline = time.monotonic() + STUCK_SECONDS
    while waiting and time.monotonic() < deadline:
        time.sleep(_STUCK_POLL_SECONDS)
        for tid, before in list(waiting.items()):
            try:
                now = procfs.status(f"{pid}/task/{tid}")
            except TargetGone:
                del waiting[tid]
                continue
            if now.state != "D" or now["voluntary_ctxt_switches"] != before["voluntary_ctxt_switches"]:
                del waiting[tid]
    return list(waiting)


def _call_of(pid: int, tid: int) -> str:
    with suppress(TargetError):
        return procfs.read(f"{pid}/task/{tid}", "syscall").partition(" ")[0]
    return ""


def confinement(statuses: dict[int, Status]) -> Iterator[Obstacle]:
    """Find seccomp where it cannot be told whether a system call of a stub would kill the target.

    What a filter allows is read in the stop only.
    """
    strict, filtered = ([tid for tid, status in statuses.items() if status.seccomp == mode]
                        for mode in (SECCOMP_STRICT, SECCOMP_FILTER))
    if strict:
        yield Obstacle("task.seccomp", f"thread {strict[0]}",
                       "runs under strict mode of seccomp, in which crd can make it do nothing", "Run it without.")
    if filtered and (reason := why_no_filters()):
        yield Obstacle("task.seccomp", f"thread {filtered[0]}", f"runs under a filter of seccomp, and {reason}",
                       "Run crd as root, or the target without (systemd: SystemCallFilter=).")


def why_no_filters() -> str:
    """Return why we can neither read nor install filters of seccomp; empty if we can."""
    ours = procfs.status("self")
    if ours.seccomp:
        return "crd itself does too"
    return "" if ours.capabilities("Eff") >> _CAP_SYS_ADMIN & 1 else "crd has no CAP_SYS_ADMIN"


def namespaces(pid: int, tids: list[int]) -> Iterator[Obstacle]:
    """Name each kind of namespace that a thread does not share with crd."""
    ours = procfs.namespaces(os.getpid())
    foreign: dict[str, int] = {}
    for tid in tids:
        with suppress(TargetGone if tid == pid else TargetError):  # those of an ending thread may not be read
            for name, inode in procfs.namespaces(f"{pid}/task/{tid}").items():
                if inode != ours.get(name, inode):
                    foreign.setdefault(name.removesuffix("_for_children"), tid)
    for name, tid in foreign.items():
        yield Obstacle("task.namespace", f"{name} namespace of thread {tid}",
                       "is not the one crd runs in, and crd cannot save namespaces yet",
                       "Run crd inside that namespace, or the target outside of it.")


def sharing(members: Family, kcmp: Kcmp) -> Iterator[tuple[int, Obstacle]]:
    """Find processes that share kernel objects with the target (clone(2)), or within it as cannot be made again.

    A process of the target may share its files or its working directory with its parent.

    Args:
        members: the processes of the target.
        kcmp: kcmp(2).

    Yields:
        The process, and the obstacle.
    """
    others = sorted({*procfs.pids()} - {*members})
    for kind, noun in _KCMP_KINDS.items():
        for found in _same([*members], others, kind, kcmp):
            sharers = [pid for pid in found if not _shares_in_passing(pid, found)]
            inside, outside = [pid for pid in sharers if pid in members], [*filter(members.lacks, sharers)]
            if inside and (outside := [pid for pid in outside if _goes_on_sharing(pid, inside[0], kind, kcmp)]):
                yield inside[0], Obstacle(
                    "task.shared", process_name(inside[0]), f"shares its {noun} with {process_names(outside)}",
                    "Checkpoint it when the other process has ended.")
            apart = [pid for pid in inside[1:] if kind not in {_KCMP_FILES, _KCMP_FS} or members[pid] not in inside]
            if apart:
                relatives = [pid for pid in inside if pid != apart[0]]
                yield apart[0], Obstacle(
                    "task.shared", process_name(apart[0]), f"shares its {noun} with {process_names(relatives)}",
                    "Checkpoint it when the other process has ended; crd cannot save this yet.")


def _same(members: Sequence[int], others: Sequence[int], kind: int, kcmp: Kcmp) -> Iterator[list[int]]:
    """Find members that share an object, and others that share it with them: each time a member is the first.

    The kernel has an order of the objects (kcmp(2)), so that members that have the same are neighbours, and another
    process finds its place among them quickly: there may be very many.  Who ends meanwhile has no place in that order.
    """
    def by_kernel(one: int, other: int) -> int:
        return (0, -1, 1, 0)[_compared(kcmp, one, other, kind)]

    visible = sorted((pid for pid in members if _compared(kcmp, pid, pid, kind) == 0), key=cmp_to_key(by_kernel))
    groups: list[list[int]] = []
    for pid in visible:
        if groups and _compared(kcmp, groups[-1][0], pid, kind) == 0:
            groups[-1].append(pid)
        else:
            groups.append([pid])
    for pid, place in zip(others, kcmp.places(kind, [group[0] for group in groups], others), strict=True):
        if place >= 0:
            groups[place].append(pid)
    rank = {pid: index for index, pid in enumerate(members)}
    for group in groups:
        if len(group) > 1:
            yield sorted(group, key=lambda pid: rank.get(pid, len(rank) + pid))


def _shares_in_passing(pid: int, sharers: list[int]) -> bool:
    """Whether a process shares only until it executes a program or ends, for which its parent waits (vfork(2)).

    One that has ended, or a kernel thread, has nothing, which is the same for all of these.
    """
    try:
        stat = procfs.stat(pid)
        if stat.state in "ZX" or stat.is_kernel_thread:
            return True
        parent = stat.parent_pid
        return parent in sharers and any(_call_of(parent, tid) in _VFORK_CALLS for tid in procfs.threads(parent))
    except TargetGone:
        return True


def _goes_on_sharing(pid: int, other: int, kind: int, kcmp: Kcmp) -> bool:
    """Whether a process still shares with another in a moment: what a killed checkpoint has left ends by then."""
    for _ in range(_LOOKS):
        if _compared(kcmp, pid, other, kind):
            return False
        time.sleep(_LOOK_AGAIN_SECONDS)
    return True


def _compared(kcmp: Kcmp, one: int, other: int, kind: int) -> int:
    """Return what kcmp does; 3 for processes that are gone or not ours to look at."""
    try:
        return kcmp(one, other, kind)
    except NativeError:
        return 3


def loners(pid: int, tids: list[int], kcmp: Kcmp) -> Iterator[Obstacle]:
    """Find threads that do not share what threads normally do (unshare(2))."""
    for kind in (_KCMP_FILES, _KCMP_FS):
        alone = [tid for tid in tids if tid != pid and _compared(kcmp, pid, tid, kind) in {1, 2}
                 and not _is_exiting(pid, tid)]
        if alone:
            yield Obstacle("task.unshared", f"thread {alone[0]}", f"has {_KCMP_KINDS[kind]} of its own (unshare(2))",
                           "crd cannot save this yet.")


def _is_exiting(pid: int, tid: int) -> bool:
    """Tell, after the kernel compared it, whether a thread may have nothing more to compare."""
    try:
        return procfs.stat(f"{pid}/task/{tid}").is_exiting
    except TargetError:
        return True
