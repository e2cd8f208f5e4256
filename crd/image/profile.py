"""The records of crd's own profile: a whole 64-bit x86 task, in a range of record types that v14 lacks.

The bytes are specified in ``FORMAT.md``.  Every record is framed (nothing raw follows a record), everything small
comes before the memory, and memory comes last, so that a reader can check and plan before it makes anything::

    HEAD BUFFER BUFFER BUFFER HEAD_ARCH PROFILE
    { a shared object, followed by what is in it }*               ``objects.py``; numbered from 1 (objref)
    per process, parents first:
      TASK STRING PROCESS SHARING? SERVED? MEMORY_LAYOUT MDWE? MERGING? LOCAL_DESCRIPTORS?
      VMA* GUARD_REGIONS* FILE_DESCRIPTOR* EPOLL_TARGET* FILE_LOCK*
      SIGNAL_ACTIONS PENDING_SIGNAL*
      INTERVAL_TIMER* POSIX_TIMER* RESOURCE_LIMIT*
      { THREAD THREAD_POLICY? MACHINE? DISPATCH? THREAD_DESCRIPTORS? CONFINEMENT? PENDING_SIGNAL* }+   the leader first
    { TASK STRING ZOMBIE }*                                          children that ended
    SHARED_PAGES* PAGES*                                             per object, then per process
    TAIL
"""

from __future__ import annotations

from crd.image.codec import Record, Struct
from crd.image.fields import NO_DATA, S32, U8, U32, U64, Bulk, Bytes, Items, Text

PROFILE_VERSION = 1
PAGE_BYTES = 4096
HUGE_PAGE_BYTES = 2 << 20
PAGES_PER_RECORD_MAX = 256
"""A memory record carries at most 1 MiB of pages, so readers need no more."""

RECORD_TYPE_FIRST = 0x43520000
"""``CR`` in the upper half: never used by any Linux-CR kernel."""


class Profile(Record, type=0x43520001):
    """What the image was taken with; decides whether this reader and host can use it."""

    version: U32
    page_bytes: U32
    processes: U32
    threads: U32
    taken_realtime_ns: U64  # CLOCK_REALTIME at the freeze
    taken_monotonic_ns: U64
    taken_boottime_ns: U64
    boot_id: Text
    host: Text
    engine: Text  # "userspace"
    xcr0: U64  # state components the CPU had enabled
    vdso_digest: Bytes  # blake2b-32 of the vdso's ELF image without its padding; empty: no vdso
    crd_version: Text


class Process(Record, type=0x43520002):
    """Identity and attributes that all threads of a process share."""

    pid: U32
    parent_pid: U32
    process_group: U32
    session: U32
    stopped_by: U32  # signal of a job-control stop, 0 = was running
    stop_reported: U8  # the parent has already waited for that stop
    exit_signal: U32
    umask: U32
    exe: Text
    exe_device: U64
    exe_inode: U64
    cwd: Text
    cwd_object: U32  # UNNAMED_FILE if the directory was deleted, else 0
    root: Text
    dumpable: U32
    child_subreaper: U8
    oom_score_adj: S32
    coredump_filter: U32
    login_uid: U32
    thp_disable: U8


class MemoryLayout(Record, type=0x43520003):
    """The fields of prctl(PR_SET_MM_MAP), the auxiliary vector, and where the vdso lies (0 = absent)."""

    start_code: U64
    end_code: U64
    start_data: U64
    end_data: U64
    start_brk: U64
    brk: U64
    start_stack: U64
    arg_start: U64
    arg_end: U64
    env_start: U64
    env_end: U64
    auxv: Bytes
    vdso_start: U64
    vdso_bytes: U64
    vvar_start: U64  # first of the vvar areas in front of the vdso
    vvar_bytes: U64


class Mdwe(Record, type=0x4352000D):
    """The process lets no memory become executable (PR_SET_MDWE of prctl(2))."""

    pid: U32
    denied: U32  # PR_MDWE_*


class Merging(Record, type=0x4352000B):
    """The kernel may merge equal pages of the whole process (PR_SET_MEMORY_MERGE of prctl(2))."""

    pid: U32


class LocalDescriptors(Record, type=0x4352000C):
    """Segments of the process (modify_ldt(2)): entries of 8 bytes, as the processor has them, from the first on."""

    pid: U32
    table: Bytes


VMA_ANONYMOUS = 1
VMA_PRIVATE_FILE = 2
VMA_SHARED_FILE = 3
VMA_SHARED_MEMORY = 4


class Vma(Record, type=0x43520004):
    """One virtual memory area; vdso, vvar and vsyscall have none."""

    kind: U32  # VMA_*
    protection: U32  # PROT_*
    start: U64
    end: U64
    offset: U64  # bytes into file or shared object
    objref: U32  # REGULAR_FILE, UNNAMED_FILE or SHARED_MEMORY, 0 for anonymous
    flags: Text  # VmFlags of smaps, such as "rd wr mr mw me ac gd"; and "np=POLICY" (THREAD_POLICY)
    name: Text  # [heap], [stack], [anon:NAME] or ""


class PageRun(Struct):
    """Consecutive pages."""

    address: U64
    pages: U64


class GuardRegions(Record, type=0x4352000A):
    """Pages that must not be touched, inside VMAs (MADV_GUARD_INSTALL of madvise(2))."""

    pid: U32
    runs: Items[PageRun]


class Pages(Record, type=0x43520005):
    """Memory of one process: runs in ascending order, and then their bytes (PAGE_BYTES for each page)."""

    pid: U32
    runs: Items[PageRun]
    data: Bulk = NO_DATA


class SharedPages(Record, type=0x43520006):
    """Content of a SHARED_MEMORY, UNNAMED_FILE or FILE_CONTENT object; the run's addresses are offsets into it."""

    objref: U32
    runs: Items[PageRun]
    data: Bulk = NO_DATA


class Sharing(Record, type=0x43520007):
    """What a process shares with its parent (clone(2)); without this record nothing."""

    files: U8  # the file table: it has no FILE_DESCRIPTORs of its own
    directories: U8  # working directory, root and umask


class Served(Record, type=0x43520009):
    """The process is under the filter of ``crctl run`` (``crd.syscalls``): two calls are served by these numbers."""

    checkpoint: U32
    restart: U32


class Zombie(Record, type=0x43520008):
    """A child that has ended, and that its parent has not waited for."""

    pid: U32
    parent_pid: U32
    process_group: U32
    session: U32
    wait_status: U32  # as wait4(2) gives it
    exit_signal: U32
    uids: Items[U32]  # real, effective, saved, file system
    gids: Items[U32]


class FileDescriptor(Record, type=0x43520018):
    """An entry of the file table."""

    pid: U32
    fd: U32
    objref: U32
    close_on_exec: U8


class EpollTarget(Record, type=0x4352001A):
    """What an epoll set watches: the task registers it when it has its descriptors."""

    pid: U32
    epoll: U32  # objref of the EPOLL
    fd: U32  # under which it was registered; another file's by now, or closed, if that is not the target's
    target: U32  # objref of the description
    events: U32  # without any but the upper four bits: it has reported its one event (EPOLLONESHOT)
    data: U64


LOCK_POSIX = 1
LOCK_FLOCK = 2
LOCK_OFD = 3
LOCK_LEASE = 4


class FileLock(Record, type=0x43520019):
    """A lock held by the process (POSIX) or by an open file description (all others)."""

    pid: U32
    kind: U32  # LOCK_*
    exclusive: U8
    fd: U32  # a descriptor of the locked file; unless POSIX: of the description that holds it
    start: U64
    end: U64  # inclusive, 2**63 - 1 = to the end


class SignalAction(Struct):
    """struct kernel_sigaction."""

    handler: U64
    flags: U64
    restorer: U64
    mask: U64


class SignalActions(Record, type=0x43520020):
    """Actions of signals 1 to 64 in order."""

    actions: Items[SignalAction]


class PendingSignal(Record, type=0x43520021):
    """A queued signal, in queue order: of the process (tid 0) or of one thread."""

    tid: U32
    siginfo: Bytes  # 128 bytes


class IntervalTimer(Record, type=0x43520022):
    """setitimer: what is left, and the interval."""

    which: U32  # ITIMER_*
    value_us: U64
    interval_us: U64


class PosixTimer(Record, type=0x43520023):
    """timer_create and timer_settime."""

    timer_id: U32
    clock: S32
    notify: U32  # SIGEV_*
    signal: U32
    tid: U32  # for SIGEV_THREAD_ID
    value: U64  # sigev_value
    value_ns: U64  # what is left, 0 = disarmed
    interval_ns: U64
    overrun: U32


class ResourceLimit(Record, type=0x43520024):
    """One of the 16 limits; 2**64 - 1 = unlimited."""

    resource: U32
    soft: U64
    hard: U64


class Capabilities(Struct):
    """The five sets."""

    inheritable: U64
    permitted: U64
    effective: U64
    bounding: U64
    ambient: U64


class Thread(Record, type=0x43520030):
    """One thread; the leader has the process's pid as tid."""

    tid: U32
    comm: Text
    registers: Bytes  # struct user_regs_struct, 27 x u64, ready to run: a restarted call is wound back
    xstate: Bytes  # NT_X86_XSTATE
    signal_mask: U64
    altstack_address: U64
    altstack_bytes: U64
    altstack_flags: U32
    robust_list: U64
    robust_list_bytes: U64
    clear_child_tid: U64
    rseq_address: U64
    rseq_bytes: U32
    rseq_signature: U32
    parent_death_signal: U32
    uids: Items[U32]  # real, effective, saved, file system
    gids: Items[U32]
    groups: Items[U32]
    capabilities: Capabilities
    secure_bits: U32
    no_new_privileges: U8
    personality: U64
    timer_slack_ns: U64
    policy: U32
    policy_flags: U64
    nice: S32
    priority: U32
    affinity: Bytes  # cpu bit mask, little-endian
    io_priority: U32
    membarrier: U32  # MEMBARRIER_CMD_GET_REGISTRATIONS; process-wide, on the leader only


class ThreadPolicy(Record, type=0x43520032):
    """On which nodes memory of the thread before it comes to lie (set_mempolicy(2)); without this record on any."""

    tid: U32
    policy: Text  # as /proc/PID/numa_maps has it, with - for spaces, such as "bind:0-1"


class Machine(Record, type=0x43520033):
    """What the thread before it has asked of the machine (prctl(2), arch_prctl(2)); without this record nothing."""

    tid: U32
    time_stamps: U32  # PR_GET_TSC: 2: rdtsc faults
    cpuid: U8  # ARCH_GET_CPUID; 0: cpuid faults
    memory_errors: U32  # PR_MCE_KILL_GET
    io_flusher: U8  # PR_GET_IO_FLUSHER
    speculation: Items[U32]  # PR_SPEC_* of PR_SPEC_STORE_BYPASS and on; 0: a thread has no choice


class Dispatch(Record, type=0x43520034):
    """System calls of the thread before it may go to a handler of the program (PR_SET_SYSCALL_USER_DISPATCH)."""

    tid: U32
    mode: U64  # PR_SYS_DISPATCH_*
    selector: U64  # address of the byte that says whether they do
    offset: U64  # the instructions whose calls never do, or alone
    bytes: U64


class ThreadDescriptors(Record, type=0x43520035):
    """Segments of the thread before it (set_thread_area(2)): three struct user_desc, of entries 12 to 14 of the GDT."""

    tid: U32
    entries: Bytes


class Confinement(Record, type=0x43520031):
    """What seccomp(2) keeps the thread before it from."""

    tid: U32
    filters: Items[U32]  # objrefs of SECCOMP_FILTERs, those installed first at the front
