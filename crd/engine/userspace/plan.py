"""What an image says is to be made, and whether it can be made here: known before anything is."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from crd.engine.userspace import confinement, limits, numbers, scheduling
from crd.engine.userspace.clash import Clash, clash
from crd.engine.userspace.fds import placement, stdio, tcp_outside
from crd.engine.userspace.ipc import messages, semaphores
from crd.engine.userspace.mem import guards, huge, restore, sysv
from crd.engine.userspace.mem.layout import vdso_digest
from crd.engine.userspace.timers import posix
from crd.errors import AccessDenied, FeatureMissing, ResourceChanged, RestartUnsupported
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
    Served,
    SharedPages,
    Sharing,
    SignalActions,
    Thread,
    Vma,
    Zombie,
)
from crd.image.records import HeadArch, String
from crd.native.memory import Memory
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.engine.api import RestartOptions
    from crd.image.codec import Record

R = TypeVar("R", bound="Record")

_CAP_SYS_ADMIN, _CAP_CHECKPOINT_RESTORE = 21, 40

@dataclass(slots=True)
class SharedRecords:
    """The records of shared objects: those that several processes of an image may refer to.

    Attributes:
        records: before those of the processes, by kind.
        objects: the shared objects by objref.
        pids: of the processes.
        opened: the first process with a descriptor of an object, by its objref; of what is in flight, the first one.
        held, going_on: connections of TCP to other processes, by objref: of whose interruption these know nothing, and
            that are to be brought back.
    """

    records: dict[type[Record], list[Any]] = field(default_factory=dict)
    objects: dict[int, Any] = field(default_factory=dict)
    pids: set[int] = field(default_factory=set)
    opened: dict[int, Plan] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    going_on: set[int] = field(default_factory=set)
    _parts: dict[type[Record], dict[int, list[Any]]] = field(default_factory=dict)

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


@dataclass(slots=True)
class Plan:
    """The small records of one process of an image, also by kind, and the shared objects of all."""

    arch: HeadArch
    profile: Profile
    shared: SharedRecords
    process: Process
    sharing: Sharing
    memory: MemoryLayout
    actions: SignalActions
    vmas: list[Vma] = field(default_factory=list)
    descriptors: list[FileDescriptor] = field(default_factory=list)
    locks: list[FileLock] = field(default_factory=list)
    pending: list[PendingSignal] = field(default_factory=list)
    interval_timers: list[IntervalTimer] = field(default_factory=list)
    posix_timers: list[PosixTimer] = field(default_factory=list)
    limits: list[ResourceLimit] = field(default_factory=list)
    threads: list[Thread] = field(default_factory=list)
    records: _Kinds = field(default_factory=dict)

    @property
    def is_served(self) -> bool:
        """Whether it is under the filter of crctl run."""
        return Served in self.records

    @property
    def pid(self) -> int:
        """Of the process, in the image."""
        return self.process.pid

    @property
    def leader(self) -> Thread:
        """The first thread."""
        return self.threads[0]

    @property
    def objects(self) -> dict[int, Any]:
        """The shared objects of all processes by objref."""
        return self.shared.objects

    def of(self, kind: type[R]) -> list[R]:
        """Return the records of a kind: of shared objects, or of this process."""
        return self.records.get(kind) or self.shared.of(kind)

    def parts(self, kind: type[R], objref: int) -> list[R]:
        """Return the records of a kind that say what is in a shared object."""
        return self.shared.parts(kind, objref)

    def pending_of(self, tid: int) -> list[PendingSignal]:
        """Return the queue of a thread, or (0) of the process."""
        return [signal for signal in self.pending if signal.tid == tid]


@dataclass(slots=True)
class TreePlan:
    """All small records of an image: processes, parents first, and zombies with their names."""

    processes: list[Plan]
    zombies: list[tuple[Zombie, str]]

    @property
    def root(self) -> Plan:
        """The first process."""
        return self.processes[0]

    @property
    def threads(self) -> list[Thread]:
        """Those of all processes."""
        return [thread for plan in self.processes for thread in plan.threads]

    @property
    def numbers(self) -> set[int]:
        """Those of all threads and zombies."""
        return {thread.tid for thread in self.threads} | {zombie.pid for zombie, _ in self.zombies}


def read_plan(records: Iterator[Record]) -> tuple[TreePlan, Record | None]:
    """Read the records before the memory.

    Args:
        records: of an image, each verified against those before it.

    Returns:
        The plan, and the first memory record (None: the image has none).

    Raises:
        ImageError: as the records do.
    """
    whole: _Kinds = {}
    parts: list[_Kinds] = []
    zombies, name, first = [], "", None
    current = whole
    for record in records:
        match record:
            case Pages() | SharedPages():
                first = record
                break
            case String():
                name = record.text
            case Zombie():
                zombies.append((record, name))
            case Process():
                current = {}
                parts.append(current)
        current.setdefault(type(record), []).append(record)
    shared = SharedRecords(whole, {record.objref: record for kind in OBJECTS for record in whole.get(kind, [])})
    processes = [_plan(whole, part, shared) for part in parts]
    shared.pids.update(plan.pid for plan in processes)
    for plan in reversed(processes):
        shared.opened |= {record.objref: plan for record in plan.descriptors}
    for message in whole.get(UnixMessage, []):
        for objref in message.rights:
            shared.opened.setdefault(objref, processes[0])
    return TreePlan(processes, zombies), first


_Kinds = dict[type["Record"], list[Any]]


def _plan(whole: _Kinds, kinds: _Kinds, shared: SharedRecords) -> Plan:
    return Plan(
        arch=whole[HeadArch][0], profile=whole[Profile][0], shared=shared, process=kinds[Process][0],
        sharing=kinds.get(Sharing, [Sharing(files=0, directories=0)])[0], memory=kinds[MemoryLayout][0],
        actions=kinds[SignalActions][0], vmas=kinds.get(Vma, []), descriptors=kinds.get(FileDescriptor, []),
        locks=kinds.get(FileLock, []), pending=kinds.get(PendingSignal, []),
        interval_timers=kinds.get(IntervalTimer, []), posix_timers=kinds.get(PosixTimer, []),
        limits=kinds.get(ResourceLimit, []), threads=kinds[Thread], records=kinds)


def check(tree: TreePlan, options: RestartOptions) -> None:
    """Make sure that the image can be restarted here, as far as can be told before anything is made.

    Raises:
        RestartUnsupported: another processor or kernel, or limits that we may not set.
        AccessDenied: the image is of another user than the caller, who is not root, or the one it is restarted for.
        PidInUse: one of its numbers is taken.
        ResourceChanged: a file, the working directory or the program is missing or not what it was, or is locked by
            somebody else.
    """
    for error in clashes(tree, options):
        raise error


def clashes(tree: TreePlan, options: RestartOptions) -> Iterator[Clash]:
    """Tell all that keeps the image from being restarted here, the weightiest first."""
    yield from clash(_check_owner, tree, options)
    yield from clash(_check_rights, options)
    yield from clash(_check_host, tree)
    yield from clash(guards.check, tree.processes)
    yield from clash(huge.check, tree.processes)
    for plan in tree.processes:
        yield from clash(limits.check, plan.limits)
        yield from clash(posix.check, plan.posix_timers)
        for thread in plan.threads:
            yield from clash(scheduling.check, thread)
    yield from placement.clashes(tree.processes, options.files)
    yield from clash(tcp_outside.check, tree.root, options.tcp)
    yield from clash(stdio.check, tree.root, options)
    yield from clash(confinement.check, tree.processes)
    for plan in tree.processes:
        for what, path in (("working directory", plan.process.cwd), ("root directory", plan.process.root)):
            if not os.path.isdir(path) and not (path == plan.process.cwd and plan.process.cwd_object):
                yield ResourceChanged(f"the {what} {path} is missing", path=path, hint="Make it again.")
        yield from clash(_check_program, plan)
    if options.pids == "original":
        yield from numbers.in_use(tree.numbers)
    yield from clash(semaphores.check, tree.root)
    yield from clash(messages.check, tree.root)
    yield from clash(sysv.check, tree.processes)  # whoever had those numbers has let go of it by now


def _check_rights(options: RestartOptions) -> None:
    """Refuse numbers that we may not choose, and namespaces that we may not make."""
    ours = int(procfs.status("self")["CapEff"], 16)
    enough = {"original": (_CAP_SYS_ADMIN, _CAP_CHECKPOINT_RESTORE), "namespace": (_CAP_SYS_ADMIN,)}.get(options.pids)
    if enough and not any(ours >> capability & 1 for capability in enough):
        what = "choosing a pid" if options.pids == "original" else "a namespace of its own"
        raise FeatureMissing(f"these privileges do not allow {what}", hint="Run as root, or use --new-pids.")


def _check_program(plan: Plan) -> None:
    restore.check_program(plan, _stat_program(plan.process))


def _stat_program(process: Process) -> os.stat_result:
    try:
        return os.stat(process.exe)
    except OSError as error:
        raise ResourceChanged(f"the program {process.exe}: {error.strerror}", path=process.exe,
                              hint="Put the file back, or choose another image.") from error


def _check_host(tree: TreePlan) -> None:
    areas = procfs.maps("self")
    vdso = next((entry for entry in areas if entry.path == "[vdso]"), None)
    vvar_bytes = sum(entry.end - entry.start for entry in areas if entry.path.startswith("[vvar"))
    if vdso is None or not all(plan.memory.vdso_start for plan in tree.processes):
        raise RestartUnsupported("the image or this kernel has no vdso")
    with Memory(os.getpid(), writable=False) as memory:
        digest = vdso_digest(memory, vdso.start, vdso.end - vdso.start)
    layouts = {(plan.memory.vdso_bytes, plan.memory.vvar_bytes) for plan in tree.processes}
    if tree.root.profile.vdso_digest != digest or layouts != {(vdso.end - vdso.start, vvar_bytes)}:
        raise RestartUnsupported("the image was taken on another kernel: its vdso differs",
                                 hint="Boot the kernel that crd inspect shows in the header.")


def _check_owner(tree: TreePlan, options: RestartOptions) -> None:
    """For a user other than root only tasks are made that had no more than that user has."""
    uid, groups, permitted = os.geteuid(), {*options.only_gids}, 0
    if uid:
        ours = procfs.status("self")
        permitted, groups = ours.capabilities("Prm"), {*map(int, ours["Groups"].split()), *os.getresgid()}
    elif options.only_uid is not None:
        uid = options.only_uid
    else:
        return
    for thread in tree.threads:
        if ({*thread.uids} != {uid} or not {*thread.gids, *thread.groups} <= groups
                or thread.capabilities.permitted & ~permitted):
            raise AccessDenied(f"the image is of uid {thread.uids[0]}, with rights that uid {uid} does not have",
                               hint="Restart it as root, or as its owner with all groups that it had.")
