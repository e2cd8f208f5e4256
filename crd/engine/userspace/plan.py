"""What an image says is to be made, and whether it can be made here: known before anything is."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from crd.engine.userspace import limits, numbers, scheduling
from crd.engine.userspace.fds import placement
from crd.engine.userspace.mem import restore
from crd.engine.userspace.mem.layout import vdso_digest
from crd.engine.userspace.timers import posix
from crd.errors import AccessDenied, ResourceChanged, RestartUnsupported
from crd.image.objects import OBJECTS, UnixMessage
from crd.image.profile import (
    FileDescriptor,
    FileLock,
    IntervalTimer,
    MemoryLayout,
    Pages,
    PendingSignal,
    PosixTimer,
    Process,
    Profile,
    ResourceLimit,
    SharedPages,
    SignalActions,
    Thread,
    Vma,
)
from crd.image.records import HeadArch
from crd.native.memory import Memory
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.engine.api import RestartOptions
    from crd.image.codec import Record

R = TypeVar("R", bound="Record")

@dataclass(slots=True)
class Plan:
    """The small records of an image.

    Attributes:
        records: all of them, by kind.
        objects: the shared objects by objref.
    """

    arch: HeadArch
    profile: Profile
    process: Process
    memory: MemoryLayout
    actions: SignalActions
    records: dict[type[Record], list[Any]] = field(default_factory=dict)
    objects: dict[int, Any] = field(default_factory=dict)
    vmas: list[Vma] = field(default_factory=list)
    descriptors: list[FileDescriptor] = field(default_factory=list)
    locks: list[FileLock] = field(default_factory=list)
    pending: list[PendingSignal] = field(default_factory=list)
    interval_timers: list[IntervalTimer] = field(default_factory=list)
    posix_timers: list[PosixTimer] = field(default_factory=list)
    limits: list[ResourceLimit] = field(default_factory=list)
    threads: list[Thread] = field(default_factory=list)
    _parts: dict[type[Record], dict[int, list[Any]]] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        """Of the process, in the image."""
        return self.process.pid

    def of(self, kind: type[R]) -> list[R]:
        """Return the records of a kind."""
        return self.records.get(kind, [])

    def parts(self, kind: type[R], objref: int) -> list[R]:
        """Return the records of a kind that say what is in a shared object."""
        if kind not in self._parts:
            by_objref: dict[int, list[Any]] = {}
            for record in self.of(kind):
                by_objref.setdefault(record.objref, []).append(record)  # type: ignore[attr-defined]
            self._parts[kind] = by_objref
        return self._parts[kind].get(objref, [])

    @property
    def opened(self) -> set[int]:
        """The objrefs of what descriptors refer to, and of what is in flight."""
        return {record.objref for record in self.descriptors}.union(*(one.rights for one in self.of(UnixMessage)))

    def pending_of(self, tid: int) -> list[PendingSignal]:
        """Return the queue of a thread, or (0) of the process."""
        return [signal for signal in self.pending if signal.tid == tid]


def read_plan(records: Iterator[Record]) -> tuple[Plan, Record | None]:
    """Read the records before the memory.

    Args:
        records: of an image, each verified against those before it.

    Returns:
        The plan, and the first memory record (None: the image has none).

    Raises:
        ImageError: as the records do.
        RestartUnsupported: the image has more than one process.
    """
    kinds: dict[type[Record], list[Record]] = {}
    first = None
    for record in records:
        if isinstance(record, Pages | SharedPages):
            first = record
            break
        kinds.setdefault(type(record), []).append(record)
    if len(kinds[Process]) > 1:
        raise RestartUnsupported(f"the image has {len(kinds[Process])} processes; this version restarts one")

    return _plan(kinds), first


def _plan(kinds: dict[type[Record], list[Any]]) -> Plan:
    objects = {record.objref: record for kind in OBJECTS for record in kinds.get(kind, [])}
    return Plan(
        arch=kinds[HeadArch][0], profile=kinds[Profile][0], process=kinds[Process][0], memory=kinds[MemoryLayout][0],
        actions=kinds[SignalActions][0], records=kinds, objects=objects, vmas=kinds.get(Vma, []),
        descriptors=kinds.get(FileDescriptor, []), locks=kinds.get(FileLock, []),
        pending=kinds.get(PendingSignal, []), interval_timers=kinds.get(IntervalTimer, []),
        posix_timers=kinds.get(PosixTimer, []), limits=kinds.get(ResourceLimit, []), threads=kinds[Thread])


def check(plan: Plan, options: RestartOptions) -> None:
    """Make sure that the image can be restarted here, as far as can be told before anything is made.

    Raises:
        RestartUnsupported: another processor or kernel, or limits that we may not set.
        AccessDenied: the image is of another user than the caller, who is not root.
        PidInUse: one of its numbers is taken.
        ResourceChanged: a file, the working directory or the program is missing or not what it was, or is locked by
            somebody else.
    """
    _check_owner(plan)
    _check_host(plan)
    limits.check(plan.limits)
    posix.check(plan.posix_timers)
    for thread in plan.threads:
        scheduling.check(thread)
    placement.check(plan, must_be_same=options.files == "fail")
    for what, path in (("working directory", plan.process.cwd), ("root directory", plan.process.root)):
        if not os.path.isdir(path) and not (path == plan.process.cwd and plan.process.cwd_object):
            raise ResourceChanged(f"the {what} {path} is missing", path=path, hint="Make it again.")
    restore.check_program(plan, _stat_program(plan.process))
    if options.pids == "original":
        numbers.await_free([thread.tid for thread in plan.threads])


def _stat_program(process: Process) -> os.stat_result:
    try:
        return os.stat(process.exe)
    except OSError as error:
        raise ResourceChanged(f"the program {process.exe}: {error.strerror}", path=process.exe,
                              hint="Put the file back, or choose another image.") from error


def _check_host(plan: Plan) -> None:
    areas = procfs.maps("self")
    vdso = next((entry for entry in areas if entry.path == "[vdso]"), None)
    vvar_bytes = sum(entry.end - entry.start for entry in areas if entry.path.startswith("[vvar"))
    if not plan.memory.vdso_start or vdso is None:
        raise RestartUnsupported("the image or this kernel has no vdso")
    with Memory(os.getpid(), writable=False) as memory:
        digest = vdso_digest(memory, vdso.start, vdso.end - vdso.start)
    layout = (plan.memory.vdso_bytes, plan.memory.vvar_bytes)
    if plan.profile.vdso_digest != digest or layout != (vdso.end - vdso.start, vvar_bytes):
        raise RestartUnsupported("the image was taken on another kernel: its vdso differs",
                                 hint="Boot the kernel that crd inspect shows in the header.")


def _check_owner(plan: Plan) -> None:
    """A caller other than root restarts only images of tasks that had no more than the caller has."""
    if os.geteuid() == 0:
        return
    ours = procfs.status("self")
    permitted, groups = int(ours["CapPrm"], 16), {*map(int, ours["Groups"].split()), *os.getresgid()}
    for thread in plan.threads:
        if ({*thread.uids} != {os.geteuid()} or not {*thread.gids, *thread.groups} <= groups
                or thread.capabilities.permitted & ~permitted):
            raise AccessDenied(f"the image is of uid {thread.uids[0]} with credentials that you do not have",
                               hint="Restart it as root, or as its owner.")
