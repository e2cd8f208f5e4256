"""The small records of an image, in the order of ``crd/image/profile.py``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from crd import syscalls
from crd.engine.userspace.mem import guards
from crd.engine.userspace.mem.layout import vdso_digest
from crd.image.profile import (
    PAGE_BYTES,
    PROFILE_VERSION,
    Confinement,
    Mdwe,
    Merging,
    Process,
    Profile,
    Served,
    Sharing,
    ThreadPolicy,
)
from crd.image.profile import Zombie as ZombieRecord
from crd.image.records import HeadArch, Task, comm_string
from crd.native.memory import Memory
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crd.engine.userspace.attributes import Attributes
    from crd.engine.userspace.capture import Capture
    from crd.engine.userspace.confinement import Filter
    from crd.engine.userspace.fds.table import FileTable
    from crd.engine.userspace.mem.layout import Layout
    from crd.engine.userspace.tree import Zombie
    from crd.image.codec import Record
    from crd.image.objects import SeccompFilter
    from crd.image.profile import EpollTarget, FileDescriptor, FileLock, Thread
    from crd.image.writer import ImageWriter
    from crd.target.procfs import MapEntry

_CRD_VERSION = version("crd")
"""Found out before workers are forked: it takes some milliseconds."""
_XCR0_OFFSET = 464
"""The software-reserved bytes of the XSAVE area hold XCR0 (arch/x86/include/uapi/asm/sigcontext.h)."""
_STATES = {"R": 0, "S": 1, "T": 4}
"""TASK_RUNNING, TASK_INTERRUPTIBLE, __TASK_STOPPED of include/linux/sched.h."""
_EXIT_ZOMBIE = 0x20
"""There, too."""


@dataclass(frozen=True, slots=True)
class ProcessRecords:
    """What an image says of one process.

    Attributes:
        captured: during the stop.
        threads: their records, the leader's first.
        space: its address space.
        attributes: asked of the target or its snapshot child.
    """

    captured: Capture
    threads: Sequence[Thread]
    space: Layout
    attributes: Attributes


def write_records(writer: ImageWriter, clocks_ns: tuple[int, int, int], objects: Sequence[Record],
                  processes: Sequence[ProcessRecords], zombies: Sequence[Zombie], files: FileTable,
                  filters: Mapping[Filter, SeccompFilter]) -> None:
    """Write what stands between the header and the memory of an image.

    Args:
        writer: of the image.
        clocks_ns: realtime, monotonic and since boot, at the stop.
        objects: what the processes share, or may.
        processes: parents first.
        zombies: children of theirs.
        files: what they have open.
        filters: of seccomp, which are among the objects.
    """
    xstate = processes[0].threads[0].xstate
    writer.write(HeadArch(has_fxsr=1, has_xsave=1, xstate_bytes=len(xstate)))
    writer.write(_profile(clocks_ns, processes, xstate))
    for shared_object in objects:
        writer.write(shared_object)
    for one in processes:
        _write_process(writer, one, files, filters)
    for zombie in zombies:
        _write_zombie(writer, zombie)


def _write_process(writer: ImageWriter, one: ProcessRecords, files: FileTable,
                   filters: Mapping[Filter, SeccompFilter]) -> None:
    captured, attributes = one.captured, one.attributes
    stat = captured.stat
    state = "T" if captured.stopped_by else captured.state
    writer.write(Task(state=_STATES[state], exit_state=0, exit_code=0, exit_signal=stat.field(38)))
    writer.write(comm_string(stat.comm))
    writer.write(_process(captured, attributes))
    if captured.shared.files or captured.shared.directories:
        writer.write(Sharing(files=captured.shared.files, directories=captured.shared.directories))
    if captured.confined.served:
        writer.write(Served(checkpoint=syscalls.NR_CHECKPOINT, restart=syscalls.NR_RESTART))
    writer.write(one.space.memory)
    if attributes.mdwe:
        writer.write(Mdwe(pid=captured.pid, denied=attributes.mdwe))
    if attributes.merges:
        writer.write(Merging(pid=captured.pid))
    if captured.local_descriptors:
        writer.write(captured.local_descriptors)
    for record in (*one.space.vmas, *guards.records(captured.pid, one.space.guards)):
        writer.write(record)
    every: list[FileDescriptor | EpollTarget | FileLock] = [*files.descriptors, *files.task_records, *files.locks]
    open_files = [record for record in every if record.pid == captured.pid]
    for record in (*open_files, attributes.actions, *captured.pending, *captured.interval_timers,
                   *captured.posix_timers, *captured.known.limits):
        writer.write(record)
    one.threads[0].membarrier = attributes.membarrier
    for thread in one.threads:
        _write_thread(writer, captured, thread, filters)


def _write_thread(writer: ImageWriter, captured: Capture, thread: Thread,
                  filters: Mapping[Filter, SeccompFilter]) -> None:
    writer.write(thread)
    if policy := captured.scheduling[thread.tid].memory_policy:
        writer.write(ThreadPolicy(tid=thread.tid, policy=policy))
    for odd in captured.oddities(thread.tid):
        writer.write(odd)
    if chain := captured.confined.filters.get(thread.tid):
        writer.write(Confinement(tid=thread.tid, filters=[filters[each].objref for each in chain]))
    for signal in captured.queues.get(thread.tid, ()):
        writer.write(signal)


def _write_zombie(writer: ImageWriter, one: Zombie) -> None:
    stat = one.stat
    writer.write(Task(state=0, exit_state=_EXIT_ZOMBIE, exit_code=stat.exit_code, exit_signal=stat.exit_signal))
    writer.write(comm_string(stat.comm))
    writer.write(ZombieRecord(
        pid=one.pid, parent_pid=stat.parent_pid, process_group=stat.process_group, session=stat.session,
        wait_status=stat.exit_code, exit_signal=stat.exit_signal, uids=one.status.uids, gids=one.status.gids))


def _profile(clocks_ns: tuple[int, int, int], processes: Sequence[ProcessRecords], xstate: bytes) -> Profile:
    realtime, monotonic, boottime = clocks_ns
    with Memory(os.getpid(), writable=False) as ours:
        vdso = _own_vdso()
        has_one = any(one.space.memory.vdso_start for one in processes)
        digest = vdso_digest(ours, vdso.start, vdso.end - vdso.start) if vdso and has_one else b""
    return Profile(
        version=PROFILE_VERSION, page_bytes=PAGE_BYTES, processes=len(processes),
        threads=sum(len(one.threads) for one in processes),
        taken_realtime_ns=realtime, taken_monotonic_ns=monotonic, taken_boottime_ns=boottime,
        boot_id=procfs.read("sys", "kernel/random/boot_id").strip(), host=os.uname().nodename, engine="userspace",
        xcr0=int.from_bytes(xstate[_XCR0_OFFSET:_XCR0_OFFSET + 8], "little"), vdso_digest=digest,
        crd_version=_CRD_VERSION)


def _own_vdso() -> MapEntry | None:
    """Return our own; we have many more areas than most targets, which need not be parsed for that."""
    lines = (line for line in procfs.read("self", "maps").split("\n") if line.endswith(" [vdso]"))
    return next((entry for line in lines for entry in procfs.parsed_maps("self", f"{line}\n")), None)


def _process(captured: Capture, attributes: Attributes) -> Process:
    stat, status, known = captured.stat, captured.status(captured.pid), captured.known
    stopped_by = captured.stopped_by
    return Process(
        pid=captured.pid, parent_pid=stat.parent_pid, process_group=stat.process_group, session=stat.session,
        stopped_by=stopped_by, stop_reported=bool(stopped_by) and stat.field(52) & 0x7F == 0,
        exit_signal=stat.field(38), umask=int(status["Umask"], 8), exe=known.exe,
        exe_device=known.exe_device, exe_inode=known.exe_inode,
        cwd=captured.cwd, cwd_object=captured.cwd_object, root=captured.root, dumpable=attributes.dumpable,
        child_subreaper=captured.subreaper, oom_score_adj=known.oom_score_adj, coredump_filter=known.coredump_filter,
        login_uid=known.login_uid, thp_disable=attributes.thp_disable)
