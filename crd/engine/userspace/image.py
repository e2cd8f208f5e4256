"""The small records of an image, in the order of ``crd/image/profile.py``."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import TYPE_CHECKING

from crd.engine.userspace.mem.layout import vdso_digest
from crd.image.profile import PAGE_BYTES, PROFILE_VERSION, Process, Profile
from crd.image.records import HeadArch, Task, comm_string
from crd.native.memory import Memory
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.engine.userspace.capture import Capture
    from crd.engine.userspace.dump import Attributes
    from crd.engine.userspace.mem.layout import Layout
    from crd.image.profile import Thread
    from crd.image.writer import ImageWriter

_XCR0_OFFSET = 464
"""The software-reserved bytes of the XSAVE area hold XCR0 (arch/x86/include/uapi/asm/sigcontext.h)."""
_STATES = {"R": 0, "S": 1, "T": 4}
"""TASK_RUNNING, TASK_INTERRUPTIBLE, __TASK_STOPPED of include/linux/sched.h."""


def write_records(writer: ImageWriter, pid: int, captured: Capture, threads: Sequence[Thread], space: Layout,
                  attributes: Attributes) -> None:
    """Write what stands between the header and the memory of an image.

    Args:
        writer: of the image.
        pid: of the process.
        captured: during the stop.
        threads: their records, the leader's first.
        space: its address space.
        attributes: asked of the target or its snapshot child.
    """
    leader = threads[0]
    writer.write(HeadArch(has_fxsr=1, has_xsave=1, xstate_bytes=len(leader.xstate)))
    writer.write(_profile(captured, space, leader.xstate))
    for shared_object in (*captured.files.object_records, *space.files, *space.shared.values()):
        writer.write(shared_object)
    stat = captured.stat
    state = "T" if captured.stopped_by else captured.state
    writer.write(Task(state=_STATES[state], exit_state=0, exit_code=0, exit_signal=stat.field(38)))
    writer.write(comm_string(stat.comm))
    writer.write(_process(pid, captured, attributes))
    writer.write(space.memory)
    for vma in space.vmas:
        writer.write(vma)
    files = captured.files
    for record in (*files.descriptors, *files.task_records, *files.locks, attributes.actions, *captured.pending,
                   *captured.interval_timers, *captured.posix_timers, *captured.known.limits):
        writer.write(record)
    leader.membarrier = attributes.membarrier
    for thread in threads:
        writer.write(thread)
        for signal in captured.queues.get(thread.tid, ()):
            writer.write(signal)


def _profile(captured: Capture, space: Layout, xstate: bytes) -> Profile:
    realtime, monotonic, boottime = captured.clocks_ns
    with Memory(os.getpid(), writable=False) as ours:
        vdso = next((entry for entry in procfs.maps("self") if entry.path == "[vdso]"), None)
        digest = vdso_digest(ours, vdso.start, vdso.end - vdso.start) if vdso and space.memory.vdso_start else b""
    return Profile(
        version=PROFILE_VERSION, page_bytes=PAGE_BYTES, processes=1, threads=len(captured.group),
        taken_realtime_ns=realtime, taken_monotonic_ns=monotonic, taken_boottime_ns=boottime,
        boot_id=procfs.read("sys", "kernel/random/boot_id").strip(), host=os.uname().nodename, engine="userspace",
        xcr0=int.from_bytes(xstate[_XCR0_OFFSET:_XCR0_OFFSET + 8], "little"), vdso_digest=digest,
        crd_version=version("crd"))


def _process(pid: int, captured: Capture, attributes: Attributes) -> Process:
    stat, status, known = captured.stat, captured.status(pid), captured.known
    stopped_by = captured.stopped_by
    return Process(
        pid=pid, parent_pid=stat.parent_pid, process_group=stat.process_group, session=stat.session,
        stopped_by=stopped_by, stop_reported=bool(stopped_by) and stat.field(52) & 0x7F == 0,
        exit_signal=stat.field(38), umask=int(status["Umask"], 8), exe=known.exe,
        exe_device=known.exe_device, exe_inode=known.exe_inode,
        cwd=captured.cwd, cwd_object=captured.cwd_object, root=captured.root, dumpable=attributes.dumpable,
        child_subreaper=captured.subreaper, oom_score_adj=known.oom_score_adj, coredump_filter=known.coredump_filter,
        login_uid=known.login_uid, thp_disable=attributes.thp_disable)
