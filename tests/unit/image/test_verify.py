"""Each rule of FORMAT.md sections 3 and 4, broken once."""

from __future__ import annotations

import io
from copy import copy

import pytest

from crd.errors import ImageCorrupt
from crd.image.framing import FRAME
from crd.image.journal import JournalConnection
from crd.image.objects import (
    BETWEEN,
    OBJECTS,
    EventFd,
    FileContent,
    InetConnection,
    InetMessage,
    InetSending,
    InetSocket,
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
    Terminal,
    TerminalEnd,
    TimerFd,
    UnixConnection,
    UnixMessage,
    UnixSocket,
    UnnamedFile,
    UnnamedOpen,
)
from crd.image.posix_queue import PosixQueue, PosixQueueMessage, PosixQueueOpen
from crd.image.profile import (
    PAGE_BYTES,
    Confinement,
    EpollTarget,
    FileDescriptor,
    FileLock,
    GuardRegions,
    IntervalTimer,
    MemoryLayout,
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
    SignalActions,
    Thread,
    ThreadPolicy,
    Vma,
    Zombie,
)
from crd.image.reader import ImageReader
from crd.image.records import HeadArch, String, Tail, Task
from crd.image.sockets import NetlinkSocket, SocketFilter, SocketOption
from crd.image.sysv import SysvMemory, SysvMessage, SysvQueue, SysvSemaphores
from crd.image.verify import verified
from tests.support.builders import (
    MEMORY_START,
    PID,
    make_image,
    make_pages,
    make_process_records,
    make_profile,
    make_records,
    make_tree_records,
    make_zombie,
    write_image,
)


def verify(records) -> None:
    for _ in verified(ImageReader(io.BytesIO(write_image(records)))):
        pass


def refused(records) -> ImageCorrupt:
    with pytest.raises(ImageCorrupt) as caught:
        verify(records)
    return caught.value


def with_second_process(**values) -> list:
    """The sample with a second process in front of the memory."""
    records = make_records()
    records[1] = make_profile(processes=2, threads=3)
    memory = next(index for index, record in enumerate(records) if isinstance(record, SharedPages))
    return records[:memory] + make_process_records(PID + 5, parent_pid=PID, **values) + records[memory:]


def changed(kind: type, number: int = 0, /, **values) -> list:
    """The sample, with fields of the ``number``-th record of a kind changed."""
    records = make_records()
    index = [index for index, record in enumerate(records) if type(record) is kind][number]
    record = copy(records[index])
    for name, value in values.items():
        setattr(record, name, value)
    records[index] = record
    return records


def test_the_sample_is_valid():
    assert len(list(verified(ImageReader(io.BytesIO(make_image()))))) == len(make_records())


def test_two_processes_are_valid():
    verify(with_second_process())


RULES = [
    (Profile, 0, {"page_bytes": 16384}, "pages of 16384"),
    (Profile, 0, {"processes": 0}, "counts 0 processes"),
    (Profile, 0, {"threads": 0}, "counts 1 processes and 0 threads"),
    (RegularFile, 0, {"objref": 0}, "objref 0"),
    (SharedMemory, 0, {"objref": 1}, "objref 1"),
    (RegularFile, 0, {"path": ""}, "no path"),
    (RegularFile, 0, {"position": 1 << 63}, "above"),
    (RegularFile, 0, {"mapped": 2}, "mapped 2"),
    (SharedMemory, 0, {"bytes": 0}, "0 bytes"),
    (SharedMemory, 0, {"bytes": 4097}, "4097 bytes"),
    (SharedMemory, 0, {"bytes": PAGE_BYTES}, "behind the end"),
    (Pipe, 0, {"data_bytes": 65537}, "capacity"),
    (Pipe, 0, {"path": "x"}, "absolute path"),
    (Pipe, 0, {"mode": 0o10000}, "mode"),
    (Pipe, 0, {"deleted": 2}, "deleted 2"),
    (PipeEnd, 0, {"hung_up": 2}, "hung_up 2"),
    (PipeData, 0, {"objref": 1}, "not the one before"),
    (PipeData, 1, {"data": b""}, "0 bytes"),
    (PipeData, 1, {"data": bytes(65537)}, "65537 bytes"),
    (PipeData, 0, {"packet": 2}, "packet 2"),
    (PipeEnd, 0, {"pipe": 2}, "no PIPE"),
    (PipeEnd, 0, {"pipe": 99}, "no PIPE"),
    (EventFd, 0, {"count": 2**64 - 1}, "count"),
    (EventFd, 0, {"semaphore": 2}, "semaphore 2"),
    (TimerFd, 0, {"clock": 2}, "clock 2"),
    (TimerFd, 0, {"set_flags": 4}, "flags 0x4"),
    (TimerFd, 0, {"value_ns": 2**63}, "above"),
    (InotifyWatch, 0, {"objref": 1}, "not the one before"),
    (InotifyWatch, 0, {"wd": 0}, "number 0"),
    (InotifyWatch, 0, {"path": ""}, "no path"),
    (PidFd, 0, {"pid": -2}, "pid -2"),
    (EpollTarget, 0, {"pid": 1}, "is of process"),
    (EpollTarget, 0, {"epoll": 6}, "no EPOLL"),
    (EpollTarget, 0, {"fd": 1 << 31}, "fd"),
    (EpollTarget, 0, {"target": 14}, "no descriptors"),
    (UnnamedFile, 0, {"kind": 7}, "unknown kind"),
    (UnnamedFile, 0, {"kind": 6}, "5000 bytes of huge pages"),
    (UnnamedFile, 0, {"kind": 5, "path": "/etc/passwd"}, "no shared memory"),
    (UnnamedFile, 0, {"kind": 5, "path": "/dev/shm/../x"}, "no shared memory"),
    (UnnamedFile, 0, {"kind": 2}, "absolute path"),
    (UnnamedFile, 0, {"kind": 2, "path": "/x"}, "seals"),
    (UnnamedFile, 0, {"kind": 4, "path": "/x"}, "5000 bytes"),
    (UnnamedFile, 0, {"kind": 4, "path": "/x", "size": 0, "seals": 0}, "is a directory"),
    (UnnamedFile, 0, {"mode": 0o10000}, "mode"),
    (UnnamedFile, 0, {"size": 1 << 63}, "bytes"),
    (UnnamedFile, 0, {"size": 4096}, "behind the end"),
    (UnnamedFile, 0, {"seals": 0x40}, "seals"),
    (UnnamedOpen, 0, {"file": 1}, "no UNNAMED_FILE"),
    (UnnamedOpen, 0, {"position": 1 << 63}, "position"),
    (Terminal, 0, {"session": 1 << 23}, "session"),
    (Terminal, 0, {"session": 0}, "no session"),
    (FileContent, 0, {"file": 2}, "no REGULAR_FILE"),
    (FileContent, 0, {"use": 4}, "unknown use"),
    (FileContent, 0, {"size": 1 << 63}, "bytes"),
    (FileContent, 0, {"saved": 2}, "saved"),
    (FileContent, 0, {"saved": 0}, "was not saved"),
    (FileContent, 0, {"size": 4096}, "behind the end"),
    (FileContent, 0, {"digest": bytes(31)}, "31 bytes"),
    (FileContent, 0, {"digest_start": 5001}, "behind its end"),
    (UnixSocket, 0, {"kind": 3}, "unknown kind"),
    (UnixSocket, 0, {"state": 5}, "unknown state"),
    (UnixSocket, 2, {"kind": 2}, "datagrams"),
    (UnixSocket, 0, {"name": bytes(109)}, "109 bytes"),
    (UnixSocket, 0, {"name": b"x"}, "do not fit"),
    (UnixSocket, 0, {"path": "/x"}, "do not fit"),
    (UnixSocket, 2, {"name": b""}, "without a name"),
    (UnixSocket, 0, {"shutdown": 4}, "shutdown"),
    (UnixSocket, 0, {"backlog": 2**31}, "backlog"),
    (UnixSocket, 0, {"options": [SocketOption(level=1, name=16, bytes=17, low=1, high=0)]}, "16 bytes"),
    (UnixConnection, 0, {"client": 19}, "object 19"),
    (UnixConnection, 0, {"client": 20}, "object 20"),
    (UnixConnection, 0, {"listener": 5}, "listener"),
    (UnixMessage, 0, {"socket": 5}, "no UNIX_SOCKET"),
    (UnixMessage, 0, {"source": bytes(109)}, "109 bytes"),
    (UnixMessage, 0, {"rights": [4]}, "object 4"),
    (UnixMessage, 0, {"rights": [10] * 254}, "254 descriptors"),
    (JournalConnection, 0, {"socket": 18}, "object 18"),
    (JournalConnection, 0, {"socket": 10}, "object 10"),
    (JournalConnection, 0, {"namespace": "../x"}, "namespace"),
    (JournalConnection, 0, {"unit": b"a\nb"}, "several lines"),
    (JournalConnection, 0, {"identifier": bytes(4097)}, "4096 bytes"),
    (JournalConnection, 0, {"priority": 192}, "priority 192"),
    (JournalConnection, 0, {"to_kernel": 2}, "to_kernel 2"),
    (InetSocket, 0, {"family": 1}, "family 1"),
    (InetSocket, 0, {"kind": 3}, "unknown kind"),
    (InetSocket, 0, {"listening": 1}, "listens"),
    (InetSocket, 0, {"shutdown": 2}, "shutdown 2"),
    (InetSocket, 1, {"local_port": 0}, "without a port"),
    (InetSocket, 1, {"local_port": 5001}, "no ends of one connection"),
    (InetSocket, 2, {"remote_address": "127.0.0.2"}, "no ends of one connection"),
    (InetConnection, 0, {"other": 21}, "no ends of one connection"),
    (InetConnection, 0, {"other": 24}, "no ends of one connection"),
    (OutsideConnection, 0, {"socket": 24}, "no end of a connection"),
    (OutsideConnection, 0, {"socket": 21}, "no end of a connection"),
    (OutsideConnection, 0, {"state": 10}, "state 10"),
    (OutsideConnection, 0, {"send_scale": 15}, "scale above 14"),
    (OutsideConnection, 0, {"receive_scale": 15}, "scale above 14"),
    (OutsideConnection, 0, {"stamped": 2}, "stamped 2"),
    (InetSending, 0, {"socket": 24}, "no connection to others"),
    (InetSending, 0, {"data": bytes(65536)}, "65536 bytes"),
    (InetSocket, 0, {"local_address": "example.com"}, "address"),
    (InetSocket, 0, {"local_address": "::1"}, "address"),
    (InetSocket, 0, {"remote_port": 65536}, "port 65536"),
    (InetMessage, 0, {"socket": 5}, "no INET_SOCKET"),
    (InetMessage, 0, {"address": "localhost"}, "address"),
    (InetMessage, 0, {"data": bytes(65536)}, "65536 bytes"),
    (NetlinkSocket, 0, {"kind": 1}, "unknown kind"),
    (NetlinkSocket, 0, {"protocol": 32}, "protocol 32"),
    (NetlinkSocket, 0, {"groups": [0]}, "group"),
    (NetlinkSocket, 0, {"groups": [8193]}, "group"),
    (SocketFilter, 0, {"socket": 10}, "object 10"),
    (SocketFilter, 0, {"locked": 2}, "locked 2"),
    (SocketFilter, 0, {"program": b""}, "0 bytes"),
    (PosixQueue, 0, {"name": "jobs"}, "no name"),
    (PosixQueue, 0, {"name": "/a/b"}, "no name"),
    (PosixQueue, 0, {"message_bytes": 0}, "room for"),
    (PosixQueue, 0, {"mode": 0o1000}, "mode"),
    (PosixQueueMessage, 0, {"objref": 31}, "not the one before it"),
    (PosixQueueMessage, 0, {"data": bytes(8193)}, "8193 bytes"),
    (PosixQueueMessage, 0, {"priority": 32768}, "priority 32768"),
    (PosixQueueOpen, 0, {"queue": 31}, "no POSIX_QUEUE"),
    (SysvSemaphores, 0, {"number": 1 << 31}, "number"),
    (SysvSemaphores, 0, {"values": []}, "0 semaphores"),
    (SysvSemaphores, 0, {"values": [32768]}, "more than 32767"),
    (SysvQueue, 0, {"mode": 0o1000}, "mode"),
    (SysvMessage, 0, {"queue": 7}, "queue 7"),
    (SysvMessage, 0, {"kind": 0}, "kind 0"),
    (SysvMemory, 0, {"objref": 1}, "not the one before it"),
    (SysvMemory, 0, {"number": 1 << 31}, "number"),
    (SysvMemory, 0, {"asked_bytes": 4096}, "4096 bytes"),
    (SysvMemory, 0, {"asked_bytes": 2 * 4096 + 1}, "8193 bytes"),
    (SysvMemory, 0, {"mode": 0o1000}, "mode"),
    (SysvMemory, 0, {"removed": 2}, "removed 2"),
    (SeccompFilter, 0, {"flags": 1}, "flags 0x1"),
    (SeccompFilter, 0, {"program": bytes(9)}, "9 bytes"),
    (SeccompFilter, 0, {"program": b""}, "0 bytes"),
    (SeccompFilter, 0, {"program": bytes(8 * 4097)}, "32776 bytes"),
    (Confinement, 0, {"tid": 1}, "thread 1"),
    (Confinement, 0, {"filters": []}, "0 filters"),
    (Confinement, 0, {"filters": [21]}, "no SECCOMP_FILTER"),
    (Terminal, 0, {"index": 1 << 20}, "number"),
    (Terminal, 0, {"settings": bytes(43)}, "43 bytes"),
    (Terminal, 0, {"mode": 0o10000}, "mode"),
    (Terminal, 0, {"locked": 2}, "locked 2"),
    (TerminalEnd, 0, {"terminal": 5}, "no TERMINAL"),
    (TerminalEnd, 0, {"master": 2}, "master 2"),
    (TerminalEnd, 1, {"master": 1}, "master of an OUTSIDE_TERMINAL"),
    (OutsideTerminal, 0, {"session": 0}, "no session"),
    (OutsideTerminal, 0, {"settings": bytes(45)}, "45 bytes"),
    (Process, 0, {"cwd_object": 1}, "no UNNAMED_FILE"),
    (Process, 0, {"pid": 0}, "pid 0"),
    (Process, 0, {"pid": 1 << 23}, "pid"),
    (Process, 0, {"exit_signal": 65}, "signal above 64"),
    (Process, 0, {"stopped_by": 65}, "signal above 64"),
    (Process, 0, {"umask": 0o1000}, "umask"),
    (Process, 0, {"oom_score_adj": -1001}, "oom_score_adj"),
    (Process, 0, {"child_subreaper": 2}, "child_subreaper"),
    (MemoryLayout, 0, {"end_code": 1}, "code from"),
    (MemoryLayout, 0, {"brk": 1 << 47}, "brk from"),
    (MemoryLayout, 0, {"start_stack": 1 << 47}, "stack"),
    (MemoryLayout, 0, {"auxv": bytes(15)}, "auxv"),
    (MemoryLayout, 0, {"vdso_bytes": 0}, "vdso"),
    (MemoryLayout, 0, {"vdso_start": 1}, "range"),
    (MemoryLayout, 0, {"vvar_bytes": 2**64 - PAGE_BYTES}, "range"),
    (Vma, 0, {"end": MEMORY_START}, "range"),
    (Vma, 0, {"start": MEMORY_START + 1}, "range"),
    (Vma, 0, {"end": MEMORY_START + 1}, "range"),
    (Vma, 2, {"end": 1 << 47}, "range"),
    (Vma, 1, {"start": MEMORY_START + 3 * PAGE_BYTES}, "before the end of the VMA"),
    (Vma, 0, {"protection": 8}, "protection"),
    (Vma, 0, {"offset": 1}, "offset"),
    (Vma, 0, {"kind": 5}, "unknown kind"),
    (Vma, 0, {"kind": 0}, "unknown kind"),
    (Vma, 0, {"objref": 1}, "anonymous"),
    (Vma, 1, {"objref": 2}, "no REGULAR_FILE"),
    (Vma, 1, {"objref": 0}, "no REGULAR_FILE"),
    (Vma, 2, {"objref": 1}, "no SHARED_MEMORY"),
    (FileDescriptor, 0, {"pid": PID + 1}, "is of process"),
    (FileDescriptor, 1, {"fd": 0}, "second time"),
    (FileDescriptor, 1, {"fd": 1 << 31}, "fd"),
    (FileDescriptor, 1, {"objref": 4}, "no open file description"),
    (FileDescriptor, 1, {"close_on_exec": 2}, "close_on_exec"),
    (FileLock, 0, {"pid": 1}, "is of process"),
    (FileLock, 0, {"kind": 5}, "unknown kind"),
    (FileLock, 0, {"fd": 99}, "not open"),
    (FileLock, 0, {"end": 1 << 63}, "is from"),
    (FileLock, 0, {"start": 5, "end": 4}, "is from"),
    (FileLock, 0, {"exclusive": 2}, "exclusive"),
    (SignalActions, 0, {"actions": ()}, "0 actions"),
    (PendingSignal, 0, {"tid": PID}, "tid"),
    (PendingSignal, 1, {"tid": 0}, "tid"),
    (PendingSignal, 0, {"siginfo": bytes(127)}, "127 bytes"),
    (PendingSignal, 0, {"siginfo": bytes(128)}, "outside 1 to 64"),
    (IntervalTimer, 0, {"which": 3}, "number 3"),
    (PosixTimer, 0, {"timer_id": 1 << 31}, "number"),
    (PosixTimer, 0, {"signal": 65}, "signal 65"),
    (ResourceLimit, 0, {"resource": 16}, "number 16"),
    (ResourceLimit, 0, {"hard": 1}, "soft above"),
    (Thread, 0, {"tid": PID + 9}, "leader comes first"),
    (Thread, 1, {"tid": PID}, "taken"),
    (Thread, 1, {"tid": 0}, "tid 0"),
    (Thread, 0, {"registers": bytes(215)}, "215 bytes"),
    (Thread, 0, {"xstate": bytes(512)}, "xstate"),
    (Thread, 0, {"uids": (0, 0, 0)}, "four uids"),
    (Thread, 0, {"gids": (0,) * 5}, "four uids"),
    (Thread, 0, {"no_new_privileges": 2}, "no_new_privileges"),
    (SharedPages, 0, {"objref": 1}, "no SHARED_MEMORY"),
    (SharedPages, 0, {"runs": (PageRun(address=1, pages=1),)}, "run of"),
    (SharedPages, 0, {"runs": (PageRun(address=2 * PAGE_BYTES, pages=1),)}, "behind the end"),
    (Pages, 0, {"pid": PID + 1}, "not in the image"),
    (Pages, 0, {"runs": (PageRun(address=MEMORY_START - PAGE_BYTES, pages=1),)}, "outside"),
    (Pages, 0, {"runs": (PageRun(address=MEMORY_START + 16 * PAGE_BYTES, pages=1),)}, "outside"),
    (Pages, 1, {"runs": (PageRun(address=MEMORY_START + 7 * PAGE_BYTES, pages=2),)}, "outside"),
    (Pages, 1, {"runs": (PageRun(address=2**64 - PAGE_BYTES, pages=2),)}, "outside"),
    (Pages, 1, {"runs": (PageRun(address=MEMORY_START, pages=2),)}, "before the end of the one before"),
    (Pages, 0, {"runs": (PageRun(address=MEMORY_START, pages=0), PageRun(address=MEMORY_START, pages=1))}, "run of 0"),
]


@pytest.mark.parametrize(("kind", "number", "values", "reason"), RULES)
def test_rule(kind, number, values, reason):
    error = refused(changed(kind, number, **values))
    assert reason in error.message
    assert error.record in error.message
    assert error.details["errno"] == 22


def test_the_error_tells_record_and_offset():
    image = write_image(changed(Process, umask=0o1000))
    offset = image.index(FRAME.pack(Process.record_type, 0)[:4])
    error = refused(changed(Process, umask=0o1000))
    assert (error.offset, error.record) == (offset, "PROCESS")


def test_records_before_the_broken_one_are_yielded():
    records = changed(Vma, 2, kind=9)
    broken = next(index for index, record in enumerate(records) if isinstance(record, Vma) and record.kind == 9)
    stream = verified(ImageReader(io.BytesIO(write_image(records))))
    assert [next(stream).record_name for _ in range(broken)] == [record.record_name for record in records[:broken]]
    with pytest.raises(ImageCorrupt, match="unknown kind 9"):
        next(stream)


@pytest.mark.parametrize("kind", [HeadArch, Profile, Task, String, Process, MemoryLayout, SignalActions])
def test_a_required_record_may_not_be_missing(kind):
    assert "may not follow" in refused([record for record in make_records() if type(record) is not kind]).message


def test_no_records_at_all():
    error = refused([])
    assert (error.record, error.offset) == (Tail.record_name, 267)


def test_order_of_records_matters():
    """Every two neighbours of different kinds, exchanged, are refused: but objects, and what may stand alone."""
    records = make_records()
    free = {*OBJECTS, *BETWEEN}
    for index in range(len(records) - 1):
        first, second = records[index], records[index + 1]
        if type(first) is type(second) or {type(first), type(second)} <= free:
            continue
        refused([*records[:index], second, first, *records[index + 2:]])


def test_a_process_without_threads():
    assert refused([record for record in make_records() if not isinstance(record, Thread)])


def test_too_few_processes():
    assert "ends 1 processes" in refused(changed(Profile, processes=2)).message


def test_too_many_processes():
    records = with_second_process()
    records[1] = make_profile(processes=1, threads=3)
    assert "one more than PROFILE counts" in refused(records).message


def test_too_many_threads():
    assert "one more than PROFILE counts" in refused(changed(Profile, threads=1)).message


@pytest.mark.parametrize(("values", "reason"), [
    ({"parent_pid": 1}, "not before it"), ({"pid": PID}, "taken"), ({"pid": PID + 1}, "taken"),
])
def test_second_process(values, reason):
    records = with_second_process()
    index = max(index for index, record in enumerate(records) if isinstance(record, Process))
    for name, value in values.items():
        setattr(records[index], name, value)
    assert reason in refused(records).message


def test_pipe_data_must_be_complete():
    assert "instead of 9" in refused(changed(Pipe, data_bytes=9)).message


def test_timers_and_limits_are_unique():
    for kind in (IntervalTimer, PosixTimer, ResourceLimit):
        records = make_records()
        index = next(index for index, record in enumerate(records) if isinstance(record, kind))
        assert "has number" in refused([*records[:index], records[index], *records[index:]]).message


def test_pages_may_span_neighbouring_areas():
    verify([*make_records(), make_pages(address=MEMORY_START + 5 * PAGE_BYTES, pages=3)])


def test_an_object_may_not_follow_its_use():
    records = make_records()
    records[2:3] = []
    assert "no REGULAR_FILE" in refused(records).message


class TestTrees:
    def test_a_tree_is_valid(self):
        verify(make_tree_records())

    @pytest.mark.parametrize(("values", "said"), [
        ({"pid": PID + 5}, "taken or none"), ({"pid": 0}, "taken or none"), ({"parent_pid": 77}, "not before it"),
        ({"wait_status": 1 << 16}, "wait status"), ({"exit_signal": 65}, "above 64"), ({"uids": [0]}, "four uids")])
    def test_zombies(self, values, said):
        records = [make_zombie(**values) if isinstance(record, Zombie) else record for record in make_tree_records()]
        assert said in refused(records).message

    def test_the_first_process_shares_with_nobody(self):
        records = make_records()
        at = next(index for index, record in enumerate(records) if isinstance(record, Served))
        assert "the first process" in refused([*records[:at], Sharing(files=1, directories=1), *records[at:]]).message

    def test_shared_files_are_not_listed_twice(self):
        records = make_tree_records()
        at = next(index for index, record in enumerate(records) if isinstance(record, Sharing)) + 3
        records.insert(at, FileDescriptor(pid=PID + 5, fd=0, objref=1, close_on_exec=0))
        assert "shares the file table" in refused(records).message


@pytest.mark.parametrize(("address", "pages"), [(MEMORY_START + 18 * PAGE_BYTES, 1), (MEMORY_START + 7 * PAGE_BYTES, 2),
                                                (MEMORY_START - PAGE_BYTES, 1), (MEMORY_START + 1, 1),
                                                (MEMORY_START, 0)])
def test_a_guard_region_lies_in_memory(address: int, pages: int) -> None:
    message = refused(changed(GuardRegions, runs=(PageRun(address=address, pages=pages),))).message
    assert ("guard from" if pages and address % PAGE_BYTES == 0 else "has a run of") in message


def test_guard_regions_ascend_over_all_records() -> None:
    records = make_records()
    at = next(index for index, record in enumerate(records) if isinstance(record, GuardRegions))
    assert "before the end" in refused([*records[:at], records[at], *records[at:]]).message
    assert "among the records of" in refused(changed(GuardRegions, pid=PID + 1)).message


def test_a_memory_policy_is_of_the_thread_before_it() -> None:
    assert "not of the one before it" in refused(changed(ThreadPolicy, tid=PID)).message
    records = make_records()
    at = next(index for index, record in enumerate(records) if isinstance(record, ThreadPolicy))
    assert "may not follow" in refused([*records[:at], records[at], *records[at:]]).message
