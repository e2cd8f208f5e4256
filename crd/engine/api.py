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

from crd.errors import BadRequest, TargetGone, TargetUnsupported
from crd.target.owner import credentials, owner

if TYPE_CHECKING:
    from collections.abc import Callable

    from crd.engine.crid import CridCounter
    from crd.engine.kernel.calls import KernelCalls
    from crd.engine.userspace.caller import Caller
    from crd.engine.userspace.dump import Dumped
    from crd.engine.userspace.notes import WriteNotes

USERSPACE = "userspace"
KERNEL = "kernel"
AUTO = "auto"
"""The kernel's own calls where they are proven or named, crd's own engine elsewhere."""
UNRESTORED = "crd-unrestored"
"""Name of a task that was made for the kernel to restore, until it has."""


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
        method: "snapshot" (copy-on-write child), "copy" (while it is stopped) or "auto" (copy what is
            little, or if the kernel makes no child).
        freeze_seconds: how long stopping all threads may take.
        engine: "userspace", "kernel" or "auto".
        linux_cr: the release of Linux-CR whose calls this kernel has (``crd.engine.kernel.table``); "": what it proves.
        tree: the process's descendants are saved with it; else it alone, and whatever it shares with them is an
            obstacle.
        left_out: a pid and a descriptor of it that is closed in the image, whatever it is: by which the process asks
            for this image.
        only_uid: refuse processes that are not this user's (``crd.target.owner``); None: whoever they are of.
        save_files_bytes: regular files up to this size that the target can write to are saved with it.
    """

    after: After = After.RUN
    method: str = "auto"
    freeze_seconds: float = 2.0
    engine: str = AUTO
    linux_cr: str = ""
    tree: bool = True
    left_out: tuple[int, int] | None = None
    only_uid: int | None = None
    save_files_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointResult:
    """An image that was written whole.

    Attributes:
        crid: its identifier.
        pid, comm: of the first process.
        uid: of whose they are (``crd.target.owner``).
        taken_at: seconds since the epoch, of the freeze.
        method: "snapshot", "precopy" (of a process whose writes are noted: all that was written was copied, most of it
            before the stop), or "copy" if the first process was copied, or any other had to be; and why.
        tasks, threads: how many, zombies not counted.
        image_bytes: of the stream; None: only who reads the stream can tell, since the kernel wrote it.
        memory_bytes: pages read; 0 if the kernel read them.
        stop_seconds: from the freeze to the thaw (for kill and stop: until nothing more was needed of the target).
        header: metadata of the image's header (``crd.image.header.Header.to_json``); empty if ``image_bytes`` is None.
        noted: pid and start time of each process of whose writes since then notes are held.
        lost: what no restart of it brings back, a sentence each.
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
    image_bytes: int | None
    memory_bytes: int
    stop_seconds: float
    duration_seconds: float
    header: dict[str, Any]
    noted: tuple[tuple[int, int], ...] = ()
    lost: tuple[str, ...] = ()


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
    """They are taken as they are."""
    ROLLBACK = "rollback"
    """Those that the tasks could write to are as they were: cut off where they have grown, or else their saved content
    is put back.  What they held beyond that is kept beside them."""
    FAIL = "fail"


class Tcp(StrEnum):
    """What becomes of connections of TCP to processes that are not in the image."""

    AUTO = "auto"
    """Those go on whose other end has not been told anything; the others are over, as their program is told."""
    ESTABLISHED = "established"
    """They all go on, or nothing is restarted."""
    CLOSE = "close"
    """They are all over, as both ends are told."""


class Stdio(StrEnum):
    """What takes the place of terminals whose other end is not in the image, as of what a shell has started."""

    INHERIT = "inherit"
    """The terminal of the caller, whose session the tasks join."""
    PTY = "pty"
    """A fresh one, set as that was."""
    NULL = "null"
    """None: /dev/null."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartOptions:
    """How to restart an image.

    Attributes:
        pids: which numbers the tasks get.
        files: what is done about open files that have changed.
        tcp: what becomes of connections to others.
        stdio: what takes the place of terminals of others.
        served: the caller will serve the calls of what ran under ``crctl run`` (``RestartResult.listeners``).
        reap: the caller stays as their parent (``wait_for_root``), so a parent-death signal makes sense, and (but for a
            pid namespace) at the other end of fresh terminals.
        only_uid: refuse images of tasks that are not this user's (``crd.target.owner``); None: whoever they are of.
        only_gids: with ``only_uid``: all the groups that the tasks may have.
        linux_cr: as of ``CheckpointOptions``; the image itself tells which engine it needs.
        force_version: an image that another version of a Linux-CR kernel wrote is restarted, if all else in it fits
            (``crd.engine.kernel.fit``); crd's own images ask for no version of the kernel.
    """

    pids: Pids = Pids.ORIGINAL
    files: Files = Files.KEEP
    tcp: Tcp = Tcp.AUTO
    stdio: Stdio = Stdio.PTY
    served: bool = False
    reap: bool = False
    only_uid: int | None = None
    only_gids: tuple[int, ...] = ()
    linux_cr: str = ""
    force_version: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartResult:
    """Tasks that are ready to run, or run.

    Attributes:
        root_pid: of the first task, as seen from here.
        start_time: field 22 of its stat: with the pid it names the task for ever.
        pids: number of each thread in the image, and the one it has now (in its own namespace).
        reaper_pid: first process of its pid namespace, or who waits for the root otherwise, and ends as that does;
            0: the root is a child of the caller.
        notes: what could not be as it was, a sentence each.
        listeners: descriptors that tell of the calls of tasks which ran under ``crctl run``; as long as ``confirm``
            runs, which keeps duplicates of them.
        terminals: masters of fresh terminals, the caller's from now on; the first is that of the first task, if that
            has one.
    """

    root_pid: int
    start_time: int
    pids: dict[int, int] = field(default_factory=dict)
    tasks: int = 1
    threads: int = 1
    duration_seconds: float = 0.0
    reaper_pid: int = 0
    notes: tuple[str, ...] = ()
    listeners: tuple[int, ...] = ()
    terminals: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedCall:
    """What became of a call of a program under ``crctl run`` (``crd.engine.served``).

    Attributes:
        pid: of the process that made it.
        result: what it returned: a crid, or a negative errno.
        message: why, for an error.
    """

    pid: int
    result: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class Made:
    """Something that a restart makes: what it is, its name or number ("" if it has none), and how, or how many."""

    kind: str
    name: str
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPlan:
    """What a restart would make, and what stands in its way.

    Attributes:
        makes: tasks, then what they hold.
        clashes: each an error as ``CrdError.to_json`` returns it; with none the restart can begin.
        notes: what could not be as it was, a sentence each.
    """

    makes: tuple[Made, ...]
    clashes: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


def checkpoint(pid: int, fd: int, flags: int = 0, *, crids: CridCounter, options: CheckpointOptions | None = None,
               notes: WriteNotes | None = None, caller: Caller | None = None,
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
        caller: a thread that waits for this checkpoint, be it of the target or not; its answer stays to be given.
        commit: makes the image durable.  A target that is to be killed or stopped stays as it is until this returns; if
            it raises, the target runs on.

    Raises:
        BadRequest: flags are not 0.
        FeatureMissing: the engine asked for is not there.
        SettingsError: no such release of Linux-CR was made for this machine.
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
    if calls := _kernel_calls(options):
        from crd.engine.kernel.dump import checkpoint as have_written

        return have_written(pid, fd, calls, options, crids=crids, commit=commit)
    if found := obstacles(pid, kcmp=kcmp, tree=options.tree, waiting=caller.tid if caller else 0,
                          left_out=options.left_out):
        raise TargetUnsupported(reasons=found, pid=pid)
    crids.check()
    with dumped(pid, DescriptorSink(fd), options, notes, hold=options.after != After.RUN, caller=caller) as image:
        result = _result(pid, image, crids, time.monotonic() - started)
        if commit:
            commit(result)
        for captured in image.captures if options.after != After.RUN else ():
            _send(captured.pid, signal.SIGKILL if options.after == After.KILL else signal.SIGSTOP)
        if image.leaving:
            image.leaving.leave()
    return result


def serving(options: CheckpointOptions) -> str:
    """Return which engine would take an image.

    Raises:
        FeatureMissing: the kernel is to take it, and nothing proves that it can.
        SettingsError: no such release of Linux-CR was made for this machine.
    """
    return KERNEL if _kernel_calls(options) else USERSPACE


def _kernel_calls(options: CheckpointOptions) -> KernelCalls | None:
    """Return the kernel's calls if they are to be used."""
    if options.engine == USERSPACE:
        return None
    from crd.engine.kernel.calls import KernelCalls
    from crd.engine.kernel.proof import RunningKernel, calls_of, is_proven

    kernel = RunningKernel()
    if options.engine == AUTO and not options.linux_cr and not is_proven(kernel):
        return None
    return KernelCalls(calls_of(kernel, options.linux_cr))


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
        duration_seconds=duration_seconds, header=image.header, lost=image.lost)


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
    from crd.engine.origin import opened
    from crd.engine.userspace.restart import Restart

    options = options or RestartOptions()
    if flags:
        raise BadRequest(f"flags {flags:#x}: only 0 is defined")
    source, of_a_kernel = opened(fd, options)
    return (of_a_kernel or Restart(source, options)).run(confirm)


def plan(fd: int, *, options: RestartOptions | None = None) -> RestartPlan:
    """Tell what a restart would make of an image, and what stands in its way; nothing is made, and nothing changed.

    Args:
        fd: open for reading; read as far as to the memory.
        options: of the restart.

    Raises:
        ImageError: the image is damaged.
    """
    from crd.engine.origin import opened
    from crd.engine.userspace.restart import plan_of

    options = options or RestartOptions()
    source, of_a_kernel = opened(fd, options)
    return of_a_kernel.plan() if of_a_kernel else plan_of(source, options)


def wait_for_root(result: RestartResult) -> int:
    """Wait until restarted tasks have ended, and return the exit status as a shell would: 128 + N for signal N.

    Only for the process that restarted them, which is their parent.
    """
    _, status = os.waitpid(result.reaper_pid or result.root_pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code
