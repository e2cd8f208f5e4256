"""Builds images of crd's profile in memory: small, valid, and easy to spoil."""

from __future__ import annotations

import io
import random
from typing import TYPE_CHECKING

from crd.image.header import Header
from crd.image.journal import JournalConnection
from crd.image.objects import (
    FILE_APPENDED,
    TERMIOS_BYTES,
    UNIX_CONNECTED,
    UNIX_IDLE,
    UNIX_LISTENING,
    UNNAMED_MEMORY,
    Epoll,
    EventFd,
    FileContent,
    InetConnection,
    InetMessage,
    InetSending,
    InetSocket,
    Inotify,
    InotifyWatch,
    OutsideConnection,
    OutsideTerminal,
    PidFd,
    Pipe,
    PipeData,
    PipeEnd,
    RegularFile,
    SeccompFilter,
    SharedMemory,
    SignalFd,
    Terminal,
    TerminalEnd,
    TimerFd,
    UnixConnection,
    UnixMessage,
    UnixSocket,
    UnnamedFile,
    UnnamedOpen,
)
from crd.image.owner import Owner
from crd.image.posix_queue import PosixQueue, PosixQueueMessage, PosixQueueOpen
from crd.image.profile import (
    LOCK_POSIX,
    PAGE_BYTES,
    PROFILE_VERSION,
    VMA_ANONYMOUS,
    VMA_PRIVATE_FILE,
    VMA_SHARED_MEMORY,
    Capabilities,
    Confinement,
    Dispatch,
    EpollTarget,
    FileDescriptor,
    FileLock,
    GuardRegions,
    IntervalTimer,
    LocalDescriptors,
    Machine,
    Mdwe,
    MemoryLayout,
    Merging,
    PageRun,
    Pages,
    PendingSignal,
    PosixTimer,
    Process,
    Profile,
    ResourceLimit,
    Served,
    SharedPages,
    Sharing,
    SignalAction,
    SignalActions,
    Thread,
    ThreadDescriptors,
    ThreadPolicy,
    Vma,
    Zombie,
)
from crd.image.records import HeadArch, Task, comm_string
from crd.image.sockets import MulticastGroup, NetlinkSocket, SocketFilter, SocketOption
from crd.image.sysv import SysvMemory, SysvMessage, SysvQueue, SysvSemaphores
from crd.image.writer import ImageWriter

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from crd.image.codec import Record

PID = 4242
SIGINFO = (10).to_bytes(4, "little").ljust(128, b"\0")
MEMORY_START = 0x5000_0000
NOBODY = Owner(kind=0, pid=0, signal=0)


class MemorySink(io.BytesIO):
    """A sink that keeps what is written."""

    def write(self, *buffers):
        return sum(super(MemorySink, self).write(buffer) for buffer in buffers)


def make_header(**values) -> Header:
    return Header(**{"major": 6, "minor": 18, "patch": 0, "time": 1_795_000_000, "release": "6.18.0",
                     "version": "#1 SMP", "machine": "x86_64", **values})


def make_profile(**values) -> Profile:
    return Profile(**{
        "version": PROFILE_VERSION, "page_bytes": PAGE_BYTES, "processes": 1, "threads": 2,
        "taken_realtime_ns": 1_795_000_000 * 10**9, "taken_monotonic_ns": 5 * 10**9, "taken_boottime_ns": 6 * 10**9,
        "boot_id": "8c5b5c0e-4d3f-4b0e-9d6a-2f1f5b1f0f00", "host": "host", "engine": "userspace", "xcr0": 0x7,
        "vdso_digest": bytes(32), "crd_version": "0.1.0", **values})


def make_file(objref: int = 1, **values) -> RegularFile:
    return RegularFile(**{
        "objref": objref, "path": "/usr/bin/worker", "mode": 0o100755, "device": 2049, "rdev": 0, "inode": 77,
        "size": 8192, "mtime_ns": 1, "ctime_ns": 1, "flags": 0, "position": 0, "owner": NOBODY,
        "mapped": 1, "build_id": b"\x01" * 20, **values})


def make_pipe_end(objref: int, pipe: int, **values) -> PipeEnd:
    return PipeEnd(**{"objref": objref, "pipe": pipe, "flags": 0, "owner": NOBODY, "hung_up": 0, **values})


def make_unix_socket(objref: int, **values) -> UnixSocket:
    return UnixSocket(**{
        "objref": objref, "flags": 2, "owner": NOBODY, "kind": 1, "state": UNIX_CONNECTED, "name": b"", "path": "",
        "device": 0, "inode": 0, "mode": 0, "deleted": 0, "target": b"", "backlog": 0, "shutdown": 0, "peer_pid": PID,
        "peer_uid": 0, "peer_gid": 0, "options": [], **values})


def make_stream(objref: int, local_port: int, remote_port: int) -> InetSocket:
    return InetSocket(objref=objref, flags=2, owner=NOBODY, family=2, kind=1, listening=0, shutdown=0, backlog=0,
                      local_address="127.0.0.1", local_port=local_port, scope=0, remote_address="127.0.0.1",
                      remote_port=remote_port, options=[])


def make_outside_connection(socket: int) -> OutsideConnection:
    return OutsideConnection(
        socket=socket, state=1, send_sequence=1000, receive_sequence=2000, unsent_bytes=3, segment_bytes=1460, scaled=1,
        send_scale=7, receive_scale=7, selective=1, stamped=1, timestamp=77, window_sequence=2000, send_window=65536,
        largest_window=65536, receive_window=65536, receive_window_from=2000)


def make_journal_connection(socket: int) -> JournalConnection:
    return JournalConnection(socket=socket, namespace="", identifier=b"worker", unit=b"worker.service", priority=30,
                             prefixed=1, to_syslog=0, to_kernel=0, to_console=0)


def make_special_files() -> list[Record]:
    """Objects from 10 on: at least one description of every kind that has no name."""
    common = {"flags": 2, "owner": NOBODY}
    return [
        EventFd(objref=10, **common, count=5, semaphore=1),
        TimerFd(objref=11, **common, clock=1, set_flags=0, ticks=1, value_ns=10**9, interval_ns=0,
                taken_realtime_ns=1_795_000_000 * 10**9),
        SignalFd(objref=12, **common, mask=1 << 9),
        Inotify(objref=13, **common),
        InotifyWatch(objref=13, wd=1, path="/etc", device=2049, inode=12, mask=0x100),
        PidFd(objref=14, **common, pid=PID),
        Epoll(objref=15, **common),
        UnnamedFile(objref=16, kind=UNNAMED_MEMORY, path="name", mode=0o777, uid=0, gid=0, size=5000, mtime_ns=1,
                    seals=1),
        UnnamedOpen(objref=17, file=16, **common, position=9),
        make_unix_socket(18), make_unix_socket(19),
        make_unix_socket(20, state=UNIX_LISTENING, name=b"\0name", backlog=5,
                         options=[SocketOption(level=1, name=16, bytes=4, low=1, high=0)]),
        InetSocket(objref=21, **common, family=2, kind=2, listening=0, shutdown=0, backlog=0, local_address="127.0.0.1",
                   local_port=4000, scope=0, remote_address="127.0.0.2", remote_port=53, options=[]),
        make_stream(24, 5000, 80), make_stream(25, 80, 5000), InetConnection(one=24, other=25),
        make_stream(26, 5001, 80), make_outside_connection(26), InetSending(socket=26, data=b"on its way"),
        InetMessage(socket=21, address="127.0.0.2", port=53, data=b"hello"),
        NetlinkSocket(objref=43, **common, kind=3, protocol=0, port=PID, groups=[1, 35], peer_port=0, peer_groups=0,
                      options=[]),
        MulticastGroup(socket=21, interface="eth0", group="239.1.2.3", excluding=0, sources=bytes([10, 0, 0, 1])),
        SocketFilter(socket=43, locked=1, program=bytes(16)),
        Terminal(objref=22, index=3, settings=bytes(TERMIOS_BYTES), rows=24, columns=80, width=0, height=0, locked=0,
                 packets=0, exclusive=0, hung_up=0, mode=0o620, uid=0, gid=5, session=PID, foreground=PID),
        TerminalEnd(objref=23, terminal=22, master=1, **common),
        OutsideTerminal(objref=41, index=4, settings=bytes(TERMIOS_BYTES), rows=24, columns=80, width=0, height=0,
                        mode=0o620, uid=0, gid=5, session=PID, foreground=PID),
        TerminalEnd(objref=42, terminal=41, master=0, **common),
        FileContent(objref=34, file=1, use=FILE_APPENDED, size=5000, uid=1, gid=2, saved=1, digest=bytes(32),
                    digest_start=0),
        UnixConnection(client=18, accepted=19, listener=20),
        make_unix_socket(35, state=UNIX_IDLE), make_journal_connection(35),
        UnixMessage(socket=18, source=b"", pid=PID, uid=0, gid=0, rights=[10], data=b"hello"),
    ]


def make_process(pid: int = PID, **values) -> Process:
    return Process(**{
        "pid": pid, "parent_pid": 1, "process_group": pid, "session": pid, "stopped_by": 0, "stop_reported": 0,
        "exit_signal": 17, "umask": 0o022, "exe": "/usr/bin/worker", "exe_device": 2049, "exe_inode": 77, "cwd": "/",
        "cwd_object": 0, "root": "/", "dumpable": 1, "child_subreaper": 0, "oom_score_adj": -17,
        "coredump_filter": 0x33, "login_uid": 2**32 - 1, "thp_disable": 0, **values})


def make_memory_layout(**values) -> MemoryLayout:
    numbers = dict.fromkeys(("start_code", "end_code", "start_data", "end_data", "start_brk", "brk", "start_stack",
                             "arg_start", "arg_end", "env_start", "env_end"), MEMORY_START)
    return MemoryLayout(**{**numbers, "auxv": bytes(16), "vdso_start": 0x7000_0000, "vdso_bytes": 8192,
                           "vvar_start": 0x6FFF_C000, "vvar_bytes": 16384, **values})


def make_vma(start: int = MEMORY_START, pages: int = 4, **values) -> Vma:
    return Vma(**{"kind": VMA_ANONYMOUS, "protection": 3, "start": start, "end": start + pages * PAGE_BYTES,
                  "offset": 0, "objref": 0, "flags": "rd wr mr mw me ac", "name": "", **values})


def make_signal_actions() -> SignalActions:
    return SignalActions(actions=[SignalAction(handler=0, flags=0, restorer=0, mask=0)] * 64)


def make_thread(tid: int = PID, **values) -> Thread:
    numbers = dict.fromkeys((
        "signal_mask", "altstack_address", "altstack_bytes", "altstack_flags", "robust_list", "robust_list_bytes",
        "clear_child_tid", "rseq_address", "rseq_bytes", "rseq_signature", "parent_death_signal", "secure_bits",
        "no_new_privileges", "personality", "timer_slack_ns", "policy", "policy_flags", "nice", "priority",
        "io_priority", "membarrier"), 0)
    return Thread(**{
        **numbers, "tid": tid, "comm": "worker", "registers": bytes(216), "xstate": bytes(832), "uids": [0] * 4,
        "gids": [0] * 4, "groups": [0, 27], "affinity": b"\x03", "capabilities": Capabilities(
            inheritable=0, permitted=0, effective=0, bounding=2**41 - 1, ambient=0), **values})


def make_pages(pid: int = PID, address: int = MEMORY_START, pages: int = 1, fill: int = 0xAB) -> Pages:
    return Pages(pid=pid, runs=[PageRun(address=address, pages=pages)],
                 data=memoryview(bytes([fill]) * pages * PAGE_BYTES))


def make_process_records(pid: int = PID, **values) -> list[Record]:
    """The records of a second process: one thread, one VMA, no files."""
    return [Task(state=0, exit_state=0, exit_code=0, exit_signal=17), comm_string("worker"),
            make_process(pid, **values), make_memory_layout(), make_vma(), make_signal_actions(), make_thread(pid)]


def make_zombie(pid: int = PID + 10, **values) -> Zombie:
    return Zombie(**{"pid": pid, "parent_pid": PID, "process_group": PID, "session": PID, "wait_status": 7 << 8,
                     "exit_signal": 17, "uids": [0] * 4, "gids": [0] * 4, **values})


def make_tree_records() -> list[Record]:
    """Those of ``make_records``, of a second process that shares its files with the first one, and of a zombie."""
    process = make_process_records(PID + 5, parent_pid=PID)
    records = make_records()
    records[1] = make_profile(processes=2, threads=3)
    memory = next(index for index, record in enumerate(records) if isinstance(record, SharedPages))
    records[memory:memory] = [*process[:3], Sharing(files=1, directories=0), *process[3:],
                              Task(state=0, exit_state=32, exit_code=7 << 8, exit_signal=17), comm_string("gone"),
                              make_zombie()]
    return records


def make_records() -> list[Record]:
    """At least one record of every type that an image of one process can have; object 4 is a pipe with two packets."""
    return [
        HeadArch(has_fxsr=1, has_xsave=1, xstate_bytes=832), make_profile(),
        make_file(1), SharedMemory(objref=2, bytes=2 * PAGE_BYTES),
        Pipe(objref=4, inode=99, capacity_bytes=65536, data_bytes=8, path="", device=14, mode=0o600, deleted=0),
        PipeData(objref=4, packet=0, data=b"hello"), PipeData(objref=4, packet=0, data=b"you"),
        make_pipe_end(5, 4), make_pipe_end(6, 4, flags=1), *make_special_files(),
        SeccompFilter(objref=30, flags=0, program=bytes(16)),
        SysvSemaphores(number=6, key=77, mode=0o600, uid=0, gid=0, values=[1, 0, 32767]),
        SysvQueue(number=6, key=77, mode=0o600, uid=0, gid=0, capacity_bytes=16384),
        SysvMessage(queue=6, kind=1, data=b"waits"),
        PosixQueue(objref=32, name="/jobs", deleted=0, mode=0o600, uid=0, gid=0, messages_max=10, message_bytes=8192),
        PosixQueueMessage(objref=32, priority=7, data=b"waits"),
        PosixQueueOpen(objref=33, queue=32, flags=2, owner=NOBODY),
        SharedMemory(objref=31, bytes=2 * PAGE_BYTES),
        SysvMemory(objref=31, number=5, key=0, asked_bytes=8000, mode=0o600, uid=0, gid=0, removed=1, locked=0),
        Task(state=0, exit_state=0, exit_code=0, exit_signal=17), comm_string("worker"), make_process(),
        Served(checkpoint=387, restart=388), make_memory_layout(),
        Mdwe(pid=PID, denied=1), Merging(pid=PID), LocalDescriptors(pid=PID, table=bytes(16)),
        make_vma(MEMORY_START), make_vma(MEMORY_START + 4 * PAGE_BYTES, kind=VMA_PRIVATE_FILE, objref=1),
        make_vma(MEMORY_START + 16 * PAGE_BYTES, 2, kind=VMA_SHARED_MEMORY, objref=2),
        GuardRegions(pid=PID, runs=[PageRun(address=MEMORY_START + 2 * PAGE_BYTES, pages=1),
                                    PageRun(address=MEMORY_START + 17 * PAGE_BYTES, pages=1)]),
        FileDescriptor(pid=PID, fd=0, objref=5, close_on_exec=0),
        FileDescriptor(pid=PID, fd=7, objref=6, close_on_exec=1),
        FileDescriptor(pid=PID, fd=8, objref=1, close_on_exec=0),
        FileDescriptor(pid=PID, fd=9, objref=15, close_on_exec=0),
        EpollTarget(pid=PID, epoll=15, fd=7, target=6, events=0x19, data=7),
        FileLock(pid=PID, kind=LOCK_POSIX, exclusive=1, fd=8, start=0, end=2**63 - 1),
        make_signal_actions(), PendingSignal(tid=0, siginfo=SIGINFO),
        IntervalTimer(which=0, value_us=500_000, interval_us=1_000_000),
        PosixTimer(timer_id=0, clock=1, notify=0, signal=14, tid=0, value=0, value_ns=10**9, interval_ns=0, overrun=0),
        ResourceLimit(resource=7, soft=1024, hard=2**64 - 1),
        make_thread(), make_thread(PID + 1), ThreadPolicy(tid=PID + 1, policy="bind:0"),
        Machine(tid=PID + 1, time_stamps=2, cpuid=1, memory_errors=1, io_flusher=0, speculation=[4, 2, 0]),
        Dispatch(tid=PID + 1, mode=1, selector=0x1000, offset=0, bytes=0),
        ThreadDescriptors(tid=PID + 1, entries=bytes(48)),
        Confinement(tid=PID + 1, filters=[30, 30]),
        PendingSignal(tid=PID + 1, siginfo=SIGINFO),
        SharedPages(objref=2, runs=[PageRun(address=PAGE_BYTES, pages=1)], data=memoryview(bytes(PAGE_BYTES))),
        SharedPages(objref=16, runs=[PageRun(address=PAGE_BYTES, pages=1)], data=memoryview(bytes(PAGE_BYTES))),
        SharedPages(objref=34, runs=[PageRun(address=0, pages=2)], data=memoryview(bytes(2 * PAGE_BYTES))),
        make_pages(), make_pages(address=MEMORY_START + 3 * PAGE_BYTES, pages=2, fill=0xCD),
    ]


def write_image(records: Iterable[Record], header: Header | None = None) -> bytes:
    """Return the image of these records; nothing checks that they fit each other."""
    sink = MemorySink()
    writer = ImageWriter(sink)
    writer.header(header or make_header())
    for record in records:
        if isinstance(record, Pages | SharedPages):
            bare = type(record)(**{name: getattr(record, name) for name in record.fields if name != "data"})
            writer.write_bulk(bare, record.data)
        else:
            writer.write(record)
    writer.finish()
    return sink.getvalue()


def make_image_of_pages(numbers: Sequence[int]) -> bytes:
    """Return a valid image of a process whose memory is these pages: noise that belongs to the number, zeros for 0."""
    data = b"".join(random.Random(number).randbytes(PAGE_BYTES) if number else bytes(PAGE_BYTES) for number in numbers)
    return write_image([
        HeadArch(has_fxsr=1, has_xsave=1, xstate_bytes=832), make_profile(threads=1),
        Task(state=0, exit_state=0, exit_code=0, exit_signal=17), comm_string("worker"), make_process(),
        make_memory_layout(), make_vma(pages=len(numbers)), make_signal_actions(), make_thread(),
        Pages(pid=PID, runs=[PageRun(address=MEMORY_START, pages=len(numbers))], data=memoryview(data))])


def make_image() -> bytes:
    """Return a small valid image with every type of record."""
    return write_image(make_records())
