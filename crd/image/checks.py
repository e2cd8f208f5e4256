"""What each record of crd's profile must be, by itself and after the records before it.

``verify`` runs these checks and knows the order of the records.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import singledispatch
from typing import TYPE_CHECKING

from crd.image.objects import (
    DESCRIPTIONS,
    Epoll,
    InetSocket,
    Pipe,
    RegularFile,
    SeccompFilter,
    SharedMemory,
    UnnamedFile,
)
from crd.image.profile import (
    LOCK_LEASE,
    LOCK_POSIX,
    PAGE_BYTES,
    VMA_ANONYMOUS,
    VMA_PRIVATE_FILE,
    VMA_SHARED_FILE,
    VMA_SHARED_MEMORY,
    Confinement,
    Dispatch,
    EpollTarget,
    FileDescriptor,
    FileLock,
    IntervalTimer,
    LocalDescriptors,
    Machine,
    Mdwe,
    MemoryLayout,
    Merging,
    PendingSignal,
    PosixTimer,
    Process,
    Profile,
    ResourceLimit,
    Sharing,
    SignalActions,
    Thread,
    ThreadDescriptors,
    ThreadPolicy,
    Vma,
    Zombie,
)
from crd.image.records import Tail

if TYPE_CHECKING:
    from crd.image.codec import Record
    from crd.image.posix_queue import PosixQueue

PID_MAX = 1 << 22
ADDRESS_END = (1 << 47) - PAGE_BYTES
"""TASK_SIZE_MAX with four-level page tables."""
SIGNALS = 64
REGISTERS_BYTES = 216
SIGINFO_BYTES = 128
XSTATE_BYTES_MIN = 576
"""The legacy area and the header that follows it."""
RESOURCES = 16
MEMORY_ERRORS_MAX = 2
"""PR_MCE_KILL_DEFAULT."""
SPECULATION_MAX = 16
DESCRIPTOR_BYTES, LDT_BYTES_MAX, THREAD_DESCRIPTORS_BYTES = 8, 65536, 48
FILTERS_MAX = 4096
"""The kernel takes 32768 instructions, and counts four more for each filter."""
FD_MAX = 2**31 - 1
FILE_OFFSET_MAX = 2**63 - 1


class MisfitError(ValueError):
    """The record does not fit the ones before it."""


def need(condition: object, otherwise: str) -> None:
    """Raise MisfitError unless the condition holds."""
    if not condition:
        raise MisfitError(otherwise)


@dataclass(slots=True)
class ProcessState:
    """What the records of one process have declared so far."""

    pid: int
    memory: list[tuple[int, int]] = field(default_factory=list)  # private memory, neighbours merged
    areas: list[tuple[int, int]] = field(default_factory=list)  # all memory, likewise
    last_vma_end: int = 0
    last_guard_end: int = 0
    last_page_end: int = 0
    fds: set[int] = field(default_factory=set)
    opened: set[int] = field(default_factory=set)  # objrefs
    timers: set[tuple[type[Record], int]] = field(default_factory=set)  # also limits
    threads: int = 0
    tid: int = 0  # of the thread read last; 0: none yet
    filters_known: int = 0  # tid of the last thread of which no CONFINEMENT may come any more
    shares_files: bool = False  # those of its parent


@dataclass(slots=True)
class ImageState:
    """What the records of an image have declared so far."""

    previous: type[Record] | None = None
    profile: Profile | None = None
    objects: dict[int, type[Record]] = field(default_factory=dict)
    whole: int = 0  # objref of the object declared last, whose parts may follow
    watches: set[int] = field(default_factory=set)  # of the INOTIFY declared last
    sockets: dict[int, int] = field(default_factory=dict)  # state of those not yet connected
    streams: dict[int, InetSocket] = field(default_factory=dict)  # connections of which only one end is known
    queue: PosixQueue | None = None  # declared last
    sysv: set[tuple[type[Record], int]] = field(default_factory=set)  # numbers of semaphores and queues
    outside: set[int] = field(default_factory=set)  # those to processes that are not in the image
    pipe: Pipe | None = None
    pipe_bytes: int = 0
    shared: dict[int, tuple[int, int]] = field(default_factory=dict)  # objref -> bytes, end of the pages so far
    processes: dict[int, ProcessState] = field(default_factory=dict)
    zombies: set[int] = field(default_factory=set)
    tids: set[int] = field(default_factory=set)
    current: ProcessState = field(default_factory=lambda: ProcessState(0))

    def is_taken(self, number: int) -> bool:
        """Whether a thread or a zombie has the number."""
        return number in self.tids or number in self.zombies

    def need_object(self, objref: int, *kinds: type[Record]) -> None:
        """Refuse a reference to anything but an object of these kinds that stands before."""
        names = " or ".join(kind.record_name for kind in kinds)
        need(self.objects.get(objref) in kinds, f"refers to object {objref}, which is no {names} before it")


@singledispatch
def check(record: Record, image: ImageState) -> None:
    """Check what ``record`` says and remember what it declares."""


@check.register(Profile)
def _check_profile(record: Profile, image: ImageState) -> None:
    need(record.page_bytes == PAGE_BYTES, f"has pages of {record.page_bytes} bytes")
    need(1 <= record.processes <= record.threads <= PID_MAX,
          f"counts {record.processes} processes and {record.threads} threads")
    image.profile = record


@check.register(Tail)
def _check_tail(_record: Tail, image: ImageState) -> None:
    assert image.profile is not None  # noqa: S101
    need(len(image.processes) == image.profile.processes and len(image.tids) == image.profile.threads,
          f"ends {len(image.processes)} processes with {len(image.tids)} threads, PROFILE counts "
          f"{image.profile.processes} and {image.profile.threads}")


# --- processes ---------------------------------------------------------------------------------


@check.register(Process)
def _check_process(record: Process, image: ImageState) -> None:
    assert image.profile is not None  # noqa: S101
    need(0 < record.pid <= PID_MAX, f"has pid {record.pid}")
    need(not image.is_taken(record.pid), f"has pid {record.pid}, which is taken")
    need(not image.processes or record.parent_pid in image.processes,
          f"has the parent {record.parent_pid}, which is not before it")
    need(len(image.processes) < image.profile.processes, "is one more than PROFILE counts")
    need(max(record.stopped_by, record.exit_signal) <= SIGNALS, "has a signal above 64")
    need(record.umask <= 0o777, f"has umask {record.umask:o}")
    need(-1000 <= record.oom_score_adj <= 1000, f"has oom_score_adj {record.oom_score_adj}")
    if record.cwd_object:
        image.need_object(record.cwd_object, UnnamedFile)
    need_flag(record.stop_reported, "stop_reported")
    need_flag(record.child_subreaper, "child_subreaper")
    need(record.thp_disable in {0, 1, 3}, f"has thp_disable {record.thp_disable}")
    image.current = image.processes[record.pid] = ProcessState(record.pid)


@check.register(Sharing)
def _check_sharing(record: Sharing, image: ImageState) -> None:
    need_flag(record.files, "files")
    need_flag(record.directories, "directories")
    need(len(image.processes) > 1, "is of the first process, whose parent is not in the image")
    image.current.shares_files = bool(record.files)


@check.register(Zombie)
def _check_zombie(record: Zombie, image: ImageState) -> None:
    need(0 < record.pid <= PID_MAX and not image.is_taken(record.pid), f"has pid {record.pid}, which is taken or none")
    need(record.parent_pid in image.processes, f"has the parent {record.parent_pid}, which is not before it")
    need(max(record.wait_status & 0x7F, record.exit_signal) <= SIGNALS, "has a signal above 64")
    need(record.wait_status <= 0xFFFF, f"has wait status 0x{record.wait_status:x}")
    need(len(record.uids) == len(record.gids) == 4, "has not four uids and gids")
    image.zombies.add(record.pid)


@check.register(MemoryLayout)
def _check_memory_layout(record: MemoryLayout, _image: ImageState) -> None:
    for name, start, end in (
        ("code", record.start_code, record.end_code), ("data", record.start_data, record.end_data),
        ("brk", record.start_brk, record.brk), ("arg", record.arg_start, record.arg_end),
        ("env", record.env_start, record.env_end), ("stack", record.start_stack, record.start_stack),
    ):
        need(start <= end <= ADDRESS_END, f"has {name} from 0x{start:x} to 0x{end:x}")
    need(len(record.auxv) % 16 == 0, f"has {len(record.auxv)} bytes of auxv")
    for name, start, n_bytes in (("vdso", record.vdso_start, record.vdso_bytes),
                                 ("vvar", record.vvar_start, record.vvar_bytes)):
        need(bool(start) == bool(n_bytes), f"has a {name} at 0x{start:x} of {n_bytes} bytes")
        if start:
            _need_range(start, start + n_bytes)


@check.register(Vma)
def _check_vma(record: Vma, image: ImageState) -> None:
    process = image.current
    _need_range(record.start, record.end)
    need(record.start >= process.last_vma_end, f"begins at 0x{record.start:x}, before the end of the VMA before it")
    need(record.protection <= 7, f"has protection 0x{record.protection:x}")
    need(record.offset % PAGE_BYTES == 0 and record.offset <= FILE_OFFSET_MAX, f"has offset 0x{record.offset:x}")
    match record.kind:
        case v if v == VMA_ANONYMOUS:
            need(record.objref == 0, "is anonymous but refers to an object")
        case v if v in {VMA_PRIVATE_FILE, VMA_SHARED_FILE}:
            image.need_object(record.objref, RegularFile, UnnamedFile)
            need(image.objects[record.objref] is RegularFile or record.objref in image.shared, "maps a directory")
        case v if v == VMA_SHARED_MEMORY:
            image.need_object(record.objref, SharedMemory)
        case _:
            raise MisfitError(f"is of unknown kind {record.kind}")
    process.last_vma_end = record.end
    _append(process.areas, record.start, record.end)
    if record.kind in {VMA_ANONYMOUS, VMA_PRIVATE_FILE}:
        _append(process.memory, record.start, record.end)


def _append(areas: list[tuple[int, int]], start: int, end: int) -> None:
    """Add what is behind them all, merged with a neighbour."""
    if areas and areas[-1][1] == start:
        start, _ = areas.pop()
    areas.append((start, end))


@check.register(FileDescriptor)
def _check_file_descriptor(record: FileDescriptor, image: ImageState) -> None:
    need_current(record.pid, image)
    need(not image.current.shares_files, "is of a process that shares the file table of its parent")
    need(record.fd <= FD_MAX and record.fd not in image.current.fds, f"has fd {record.fd} a second time")
    need(image.objects.get(record.objref) in DESCRIPTIONS, f"refers to object {record.objref}, which is no open file "
                                                           "description before it")
    need_flag(record.close_on_exec, "close_on_exec")
    image.current.fds.add(record.fd)
    image.current.opened.add(record.objref)


@check.register(EpollTarget)
def _check_epoll_target(record: EpollTarget, image: ImageState) -> None:
    need_current(record.pid, image)
    image.need_object(record.epoll, Epoll)
    need(record.fd <= FD_MAX, f"has fd {record.fd}")
    need({record.epoll, record.target} <= image.current.opened,
         f"is of objects {record.epoll} and {record.target}, of which the process has no descriptors")


@check.register(FileLock)
def _check_file_lock(record: FileLock, image: ImageState) -> None:
    need_current(record.pid, image)
    need(LOCK_POSIX <= record.kind <= LOCK_LEASE, f"is of unknown kind {record.kind}")
    need(record.fd in image.current.fds, f"is on fd {record.fd}, which is not open")
    need(record.start <= record.end <= FILE_OFFSET_MAX, f"is from {record.start} to {record.end}")
    need_flag(record.exclusive, "exclusive")


@check.register(SignalActions)
def _check_signal_actions(record: SignalActions, _image: ImageState) -> None:
    need(len(record.actions) == SIGNALS, f"has {len(record.actions)} actions")


@check.register(PendingSignal)
def _check_pending_signal(record: PendingSignal, image: ImageState) -> None:
    process = image.current
    need(record.tid == process.tid, f"is of tid {record.tid} where one of {process.tid} must be")
    process.filters_known = record.tid
    need(len(record.siginfo) == SIGINFO_BYTES, f"has a siginfo of {len(record.siginfo)} bytes")
    need(1 <= int.from_bytes(record.siginfo[:4], "little") <= SIGNALS, "has a signal outside 1 to 64")


@check.register(IntervalTimer)
def _check_interval_timer(record: IntervalTimer, image: ImageState) -> None:
    _need_once(image, IntervalTimer, record.which, 2)


@check.register(PosixTimer)
def _check_posix_timer(record: PosixTimer, image: ImageState) -> None:
    _need_once(image, PosixTimer, record.timer_id, FD_MAX)
    need(record.signal <= SIGNALS, f"has signal {record.signal}")


@check.register(ResourceLimit)
def _check_resource_limit(record: ResourceLimit, image: ImageState) -> None:
    _need_once(image, ResourceLimit, record.resource, RESOURCES - 1)
    need(record.soft <= record.hard, "has its soft above its hard limit")


@check.register(Thread)
def _check_thread(record: Thread, image: ImageState) -> None:
    assert image.profile is not None  # noqa: S101
    process = image.current
    need(process.threads or record.tid == process.pid, f"has tid {record.tid}, but the leader comes first")
    need(0 < record.tid <= PID_MAX and not image.is_taken(record.tid), f"has tid {record.tid}, which is taken")
    need(not process.threads or record.tid not in image.processes, f"has tid {record.tid}, which is a pid")
    need(len(image.tids) < image.profile.threads, "is one more than PROFILE counts")
    need(len(record.registers) == REGISTERS_BYTES, f"has {len(record.registers)} bytes of registers")
    need(len(record.xstate) >= XSTATE_BYTES_MIN, f"has {len(record.xstate)} bytes of xstate")
    need(len(record.uids) == len(record.gids) == 4, "has not four uids and gids")
    need_flag(record.no_new_privileges, "no_new_privileges")
    image.tids.add(record.tid)
    process.threads += 1
    process.tid = record.tid


@check.register(ThreadPolicy)
def _check_thread_policy(record: ThreadPolicy, image: ImageState) -> None:
    need(record.tid == image.current.tid, f"is of thread {record.tid}, not of the one before it")


@check.register(Mdwe)
def _check_mdwe(record: Mdwe, image: ImageState) -> None:
    need_current(record.pid, image)
    need(record.denied, "has denied 0")


@check.register(Merging)
def _check_merging(record: Merging, image: ImageState) -> None:
    need_current(record.pid, image)


@check.register(LocalDescriptors)
def _check_local_descriptors(record: LocalDescriptors, image: ImageState) -> None:
    need_current(record.pid, image)
    need(0 < len(record.table) <= LDT_BYTES_MAX and len(record.table) % DESCRIPTOR_BYTES == 0,
          f"has a table of {len(record.table)} bytes")


@check.register(Dispatch)
def _check_dispatch(record: Dispatch, image: ImageState) -> None:
    need(record.tid == image.current.tid, f"is of thread {record.tid}, not of the one before it")
    need(record.mode, "has mode 0")


@check.register(ThreadDescriptors)
def _check_thread_descriptors(record: ThreadDescriptors, image: ImageState) -> None:
    need(record.tid == image.current.tid, f"is of thread {record.tid}, not of the one before it")
    need(len(record.entries) == THREAD_DESCRIPTORS_BYTES, f"has entries of {len(record.entries)} bytes")


@check.register(Machine)
def _check_machine(record: Machine, image: ImageState) -> None:
    need(record.tid == image.current.tid, f"is of thread {record.tid}, not of the one before it")
    need(record.time_stamps in {1, 2}, f"has time_stamps {record.time_stamps}")
    need(record.memory_errors <= MEMORY_ERRORS_MAX, f"has memory_errors {record.memory_errors}")
    need(len(record.speculation) <= SPECULATION_MAX, f"has {len(record.speculation)} choices of speculation")
    need_flag(record.cpuid, "cpuid")
    need_flag(record.io_flusher, "io_flusher")


@check.register(Confinement)
def _check_confinement(record: Confinement, image: ImageState) -> None:
    process = image.current
    need(record.tid == process.tid != process.filters_known, f"is of thread {record.tid}, not of the one before it")
    need(0 < len(record.filters) <= FILTERS_MAX, f"has {len(record.filters)} filters")
    for objref in record.filters:
        image.need_object(objref, SeccompFilter)
    process.filters_known = record.tid


# --- what many records need --------------------------------------------------------------------


def _need_range(start: int, end: int) -> None:
    need(start < end <= ADDRESS_END and start % PAGE_BYTES == end % PAGE_BYTES == 0,
          f"has the range 0x{start:x} to 0x{end:x}")


def need_flag(value: int, name: str) -> None:
    """Refuse a flag that is neither 0 nor 1."""
    need(value <= 1, f"has {name} {value}")


def need_current(pid: int, image: ImageState) -> None:
    """Refuse what is not of the process among whose records it stands."""
    need(pid == image.current.pid, f"is of process {pid} among the records of {image.current.pid}")


def _need_once(image: ImageState, kind: type[Record], number: int, maximum: int) -> None:
    need(number <= maximum and (kind, number) not in image.current.timers, f"has number {number}")
    image.current.timers.add((kind, number))
