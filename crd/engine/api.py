"""The contract of sys_checkpoint and sys_restart, in Python.

``checkpoint(pid, fd, flags)`` writes the image of a running process to a descriptor and returns a crid;
``restart(fd, flags)`` turns an image back into a running process.  Both belong into a process that does nothing else
and may be killed at any instant: ``crd/engine/worker.py``, or a command line program.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from crd.errors import BadRequest, FeatureMissing, TargetGone, TargetUnsupported
from crd.target.owner import credentials, owner

if TYPE_CHECKING:
    from collections.abc import Callable

    from crd.engine.crid import CridCounter
    from crd.engine.userspace.dump import Dumped
    from crd.engine.userspace.notes import WriteNotes

USERSPACE = "userspace"


class After(StrEnum):
    """What becomes of the target once its image is safe."""

    RUN = "run"
    KILL = "kill"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointOptions:
    """How to take an image.

    Attributes:
        after: what becomes of the target.
        method: "snapshot" (copy-on-write child), "copy" (while it is stopped) or "auto" (copy only if the kernel makes
            no child).
        freeze_seconds: how long stopping all threads may take.
        engine: "userspace", "kernel" or "auto".
        tree: the process's descendants are saved with it; else it alone, and whatever it shares with them is an
            obstacle.
        only_uid: refuse processes that are not this user's (``crd.target.owner``); None: whoever they are of.
    """

    after: After = After.RUN
    method: str = "auto"
    freeze_seconds: float = 2.0
    engine: str = "auto"
    tree: bool = True
    only_uid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointResult:
    """An image that was written whole.

    Attributes:
        crid: its identifier.
        pid, comm: of the first process.
        uid: of whose they are (``crd.target.owner``).
        taken_at: seconds since the epoch, of the freeze.
        method: "snapshot", "precopy" (of a process whose writes are noted: all that was written was copied, most of it
            before the stop), or "copy" if any process had to be copied whole; and why.
        tasks, threads: how many, zombies not counted.
        image_bytes: of the stream.
        memory_bytes: pages read.
        stop_seconds: from the freeze to the thaw (for kill and stop: until nothing more was needed of the target).
        header: metadata of the image's header (``crd.image.header.Header.to_json``).
        noted: pid and start time of each process of whose writes since then notes are held.
    """

    crid: int
    pid: int
    uid: int
    comm: str
    taken_at: float
    engine: str
    method: str
    method_reason: str
    tasks: int
    threads: int
    image_bytes: int
    memory_bytes: int
    stop_seconds: float
    duration_seconds: float
    header: dict[str, Any]
    noted: tuple[tuple[int, int], ...] = ()


class Pids(StrEnum):
    """Which numbers the restarted tasks get."""

    ORIGINAL = "original"
    NEW = "new"
    """The kernel's choice.  A program that has remembered its own numbers (glibc keeps each thread's tid for
    pthread_kill and robust mutexes) finds them wrong."""
    NAMESPACE = "namespace"
    """The original ones, in a pid namespace of their own: several copies can run at once."""


class Files(StrEnum):
    """What is done about open files that have changed since the image was taken."""

    KEEP = "keep"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartOptions:
    """How to restart an image.

    Attributes:
        pids: which numbers the tasks get.
        files: what is done about open files that have changed.
        reap: the caller stays as their parent (``wait_for_root``), so a parent-death signal makes sense.
        only_uid: refuse images of tasks that are not this user's (``crd.target.owner``); None: whoever they are of.
        only_gids: with ``only_uid``: all the groups that the tasks may have.
    """

    pids: Pids = Pids.ORIGINAL
    files: Files = Files.KEEP
    reap: bool = False
    only_uid: int | None = None
    only_gids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartResult:
    """Tasks that are ready to run, or run.

    Attributes:
        root_pid: of the first task, as seen from here.
        start_time: field 22 of its stat: with the pid it names the task for ever.
        pids: number of each thread in the image, and the one it has now (in its own namespace).
        reaper_pid: first process of its pid namespace, 0 if it has none of its own.
        notes: what could not be as it was, a sentence each.
    """

    root_pid: int
    start_time: int
    pids: dict[int, int] = field(default_factory=dict)
    tasks: int = 1
    threads: int = 1
    duration_seconds: float = 0.0
    reaper_pid: int = 0
    notes: tuple[str, ...] = ()


def checkpoint(pid: int, fd: int, flags: int = 0, *, crids: CridCounter, options: CheckpointOptions | None = None,
               notes: WriteNotes | None = None,
               commit: Callable[[CheckpointResult], None] | None = None) -> CheckpointResult:
    """Write the image of a process and give it a crid.

    Args:
        pid: of the process.
        fd: open for writing: a file, a pipe or a socket.
        flags: must be 0, as for the system call.
        crids: where the crid comes from, once the whole image is written.
        options: how.
        notes: of what is written, kept up from one image to the next; with ``since`` the stream tells only what has
            changed (``crd.image.since``).  None: the stream is a whole image.
        commit: makes the image durable.  A target that is to be killed or stopped stays as it is until this returns; if
            it raises, the target runs on.

    Raises:
        BadRequest: flags are not 0.
        FeatureMissing: the engine asked for is not there.
        TargetUnsupported: there are obstacles (``crd.target.preflight``); the target was not touched.
        CrdError: anything else; the target runs on, and there is no image.
    """
    from crd.engine.stream import DescriptorSink
    from crd.engine.userspace.dump import dumped
    from crd.native.syscall import kcmp
    from crd.target.preflight import obstacles

    options = options or CheckpointOptions()
    started = time.monotonic()
    if flags:
        raise BadRequest(f"flags {flags:#x}: only 0 is defined")
    if options.engine == "kernel":
        raise FeatureMissing("this kernel has no Linux-CR system calls", hint="Use the userspace engine.")
    if found := obstacles(pid, kcmp=kcmp, tree=options.tree):
        raise TargetUnsupported(reasons=found, pid=pid)
    crids.check()
    with dumped(pid, DescriptorSink(fd), options, notes, hold=options.after != After.RUN) as image:
        result = _result(pid, image, crids, time.monotonic() - started)
        if commit:
            commit(result)
        for captured in image.captures if options.after != After.RUN else ():
            _send(captured.pid, signal.SIGKILL if options.after == After.KILL else signal.SIGSTOP)
    return result


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError as error:
        raise TargetGone(f"process {pid} ended by itself") from error


def _result(pid: int, image: Dumped, crids: CridCounter, duration_seconds: float) -> CheckpointResult:
    uid = owner(credentials(captured.status(tid)) for captured in image.captures for tid in captured.group.tids)
    return CheckpointResult(
        crid=crids.next(), pid=pid, uid=uid, comm=image.captures[0].status(pid).comm,
        taken_at=image.taken_at_ns / 1e9, engine=USERSPACE, method=image.method, method_reason=image.method_reason,
        tasks=len(image.captures), threads=sum(len(captured.group) for captured in image.captures),
        image_bytes=image.image_bytes, memory_bytes=image.memory_bytes, stop_seconds=image.stop_seconds,
        duration_seconds=duration_seconds, header=image.header)


def restart(fd: int, flags: int = 0, *, options: RestartOptions | None = None,
            confirm: Callable[[RestartResult], None] | None = None) -> RestartResult:
    """Turn an image into running tasks.

    Args:
        fd: open for reading: a file, a pipe or a socket; read once, front to back.
        flags: must be 0, as for the system call.
        options: how.
        confirm: called when everything is made and nothing runs yet; if it raises, nothing is left.

    Raises:
        BadRequest: flags are not 0.
        ImageError: the image is damaged; nothing is left.
        RestartError, AccessDenied, FeatureMissing: it cannot be restarted here; nothing is left.
    """
    from crd.engine.stream import DescriptorSource
    from crd.engine.userspace.restart import Restart

    options = options or RestartOptions()
    if flags:
        raise BadRequest(f"flags {flags:#x}: only 0 is defined")
    return Restart(DescriptorSource(fd), options).run(confirm)


def wait_for_root(result: RestartResult) -> int:
    """Wait until restarted tasks have ended, and return the exit status as a shell would: 128 + N for signal N.

    Only for the process that restarted them, which is their parent.
    """
    _, status = os.waitpid(result.reaper_pid or result.root_pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code
