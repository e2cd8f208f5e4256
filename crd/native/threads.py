"""All threads of a process at once: stopped, read and let go by one call of C each, since each costs stop time."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crd.native import tracee
from crd.native.check import call
from crd.native.ffi import ffi, lib
from crd.native.tracee import Registers, RseqConfiguration, Stop

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

_XSTATE_BYTES_MAX = 16 << 10
"""More than the 11,008 bytes of a processor with AMX."""
_STATUS_BYTES_MAX = 4 << 10
_OPEN_BEFORE_MAX = 256
_MORE_THREADS = 8
_REGISTERS_BYTES = 216
_CHILDREN_BYTES = 4 << 10
_THREAD_BYTES: int = ffi.sizeof("struct crd_thread")
_RIP = ffi.offsetof("struct crd_thread", "registers") + 128
_DISPATCH: int = ffi.offsetof("struct crd_thread", "dispatch")


@dataclass(frozen=True, slots=True)
class ThreadState:
    """What a stopped thread is seen to have from outside.

    Attributes:
        signal_mask: blocked signals, bit n-1 for signal n.
        robust_list, robust_list_bytes: head and length of its list of robust mutexes.
        rseq: what it registered with rseq(2).
        rseq_section: address of the critical section it may be in, 0 = none.
        xstate: its extended state.
        dispatch: mode (0: off), selector, offset and length of PR_SET_SYSCALL_USER_DISPATCH.
        descriptors: three struct user_desc (set_thread_area(2)).
    """

    signal_mask: int
    robust_list: int
    robust_list_bytes: int
    rseq: RseqConfiguration
    rseq_section: int
    xstate: bytes
    dispatch: tuple[int, ...]
    descriptors: bytes


class Room:
    """Buffers and open files for reading the threads of a process, made before its stop.  A context manager."""

    def __init__(self, pid: int, tids: Sequence[int]) -> None:
        """Prepare for these threads, of which some may end and others be added."""
        self.pid = pid
        self.tids = tids
        self._fds: dict[int, int] = {}
        self._allocate(len(tids) + _MORE_THREADS)
        for tid in tids[:_OPEN_BEFORE_MAX]:
            self._open(tid)

    def _allocate(self, n: int) -> None:
        self.n = n
        self._xstates, self._statuses = _touched(n * _XSTATE_BYTES_MAX), _touched(n * _STATUS_BYTES_MAX)
        self._status_fds = ffi.new("int[]", n)
        self.c = ffi.new("struct crd_thread_room *", {
            "xstates": self._xstates, "xstate_stride": _XSTATE_BYTES_MAX, "statuses": self._statuses,
            "status_stride": _STATUS_BYTES_MAX, "status_fds": self._status_fds})

    def _open(self, tid: int) -> int:
        with suppress(OSError):  # it has ended; or we have too many files: its status is read again, by its name
            self._fds[tid] = os.open(f"/proc/{self.pid}/task/{tid}/status", os.O_RDONLY | os.O_CLOEXEC)
        return self._fds.get(tid, -1)

    def seat(self, group: ThreadGroup) -> None:
        """Make room for the threads of a group in their order."""
        self.finish()
        self._group, tids = group, group.tids  # which is written to until ``finish``
        if len(tids) > self.n:
            self._allocate(len(tids) + _MORE_THREADS)
        for index, tid in enumerate(tids):
            self._status_fds[index] = self._fds[tid] if tid in self._fds else self._open(tid)

    def finish(self) -> None:
        """Wait until the status files have been read."""
        lib.crd_threads_await_files(self.c)

    def xstate(self, index: int) -> bytes:
        """Return the extended state of a thread."""
        return bytes(ffi.buffer(self._xstates + index * _XSTATE_BYTES_MAX, self.c.xstate_bytes))

    def status(self, index: int) -> str:
        """Return the text of a thread's status file; empty if it could not be read, or is too long."""
        text = ffi.cast("char *", self._statuses + index * _STATUS_BYTES_MAX)
        found: bytes = ffi.string(text, _STATUS_BYTES_MAX)
        return found.decode("utf-8", "surrogateescape")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.finish()
        for fd in self._fds.values():
            os.close(fd)


def _touched(length: int) -> Any:
    """Return a buffer whose pages are there already: in the stop each one would cost."""
    buffer = ffi.new("unsigned char[]", length)
    ffi.memmove(buffer, bytes(length), length)
    return buffer


class ThreadGroup:
    """Threads by tid, in order.  Those that have ended are in ``errors``; nothing more is done with them."""

    def __init__(self, tids: Sequence[int], stops: Sequence[Stop] = ()) -> None:
        """Take threads, of which nothing is known yet but perhaps their last stops."""
        self.tids = list(tids)
        self._index = {tid: index for index, tid in enumerate(self.tids)}
        self.c = ffi.new("struct crd_thread[]", len(self.tids))
        for index, tid in enumerate(self.tids):
            self.c[index].tid = tid
        for index, stop in enumerate(stops):
            self.c[index].status = stop.status

    def __len__(self) -> int:
        return len(self.tids)

    def errors(self) -> dict[int, int]:
        """Return errno of the request that failed, by tid: ESRCH, ECHILD if it has ended."""
        return {thread.tid: thread.error for thread in self.c if thread.error}

    def seize(self, options: int) -> dict[int, int]:
        """PTRACE_SEIZE and PTRACE_INTERRUPT all; return as ``errors``."""
        lib.crd_threads_seize(self.c, len(self), options)
        return self.errors()

    def stops(self, deadline: float) -> Iterator[Stop | None]:
        """Wait until all have stopped or ended, and return of each how; None for one that has not in time.

        Args:
            deadline: time.monotonic() at which to give up.

        Raises:
            NativeError: waiting failed.
        """
        call(lib.crd_threads_wait, self.c, len(self), max(0, int((deadline - time.monotonic()) * 1e9)))
        return (stop if stop.status else None for stop in self.last_stops())

    def last_stops(self) -> Iterator[Stop]:
        """Return how each has stopped last."""
        return (Stop(thread.tid, thread.status) for thread in self.c)

    def read(self, room: Room) -> dict[int, int]:
        """Read all that there is to see of them, which are stopped threads of one process; return as ``errors``.

        Their status files are read meanwhile, and waited for by whoever asks for what is in them.
        """
        room.seat(self)
        call(lib.crd_threads_read, self.c, len(self), room.pid, room.c)
        self._room = room
        return self.errors()

    def children(self, pid: int, n: int | None = None) -> list[int]:
        """Return the children of the threads of a process, or of the first n; exact while they are stopped.

        Raises:
            NativeError: they cannot be read.
        """
        size, length = _CHILDREN_BYTES, ffi.new("size_t *")
        while True:
            text = ffi.new("char[]", size)
            call(lib.crd_threads_children, self.c, len(self) if n is None else n, pid, text, size, length)
            if length[0] <= size:
                return sorted(map(int, ffi.buffer(text, length[0])[:].split()))
            size = length[0] + _CHILDREN_BYTES

    def registers(self, tid: int) -> Registers:
        """Return the registers with which a thread goes on."""
        return Registers.from_bytes(bytes(ffi.buffer(self.c[self._index[tid]].registers)))

    def addresses(self) -> list[int]:
        """Return the address that each goes on from."""
        return self._each(_RIP)

    def dispatched(self) -> list[int]:
        """Return those whose system calls may go to a handler of theirs (PR_SET_SYSCALL_USER_DISPATCH)."""
        return [tid for tid, mode in zip(self.tids, self._each(_DISPATCH), strict=True) if mode]

    def _each(self, offset: int) -> list[int]:
        return memoryview(ffi.buffer(self.c)).cast("B").cast("Q")[offset // 8::_THREAD_BYTES // 8].tolist()

    def set_registers(self, tid: int, registers: Registers) -> None:
        """Have a thread go on with other registers."""
        tracee.set_registers(tid, registers)
        ffi.memmove(self.c[self._index[tid]].registers, registers.to_bytes(), _REGISTERS_BYTES)

    def status(self, tid: int) -> str:
        """Return the text of a thread's status file; empty if it could not be read, or is too long."""
        self._room.finish()
        return self._room.status(self._index[tid])

    def is_queued(self, tid: int) -> bool:
        """Whether signals are queued for a thread alone."""
        return bool(self.c[self._index[tid]].queued)

    def confined(self) -> list[int]:
        """Return those whose status does not say that they run without seccomp(2)."""
        self._room.finish()
        return [thread.tid for thread in self.c if not thread.unconfined]

    def state(self, tid: int) -> ThreadState:
        """Return what was read of a thread."""
        index = self._index[tid]
        thread = self.c[index]
        return ThreadState(
            thread.mask, thread.robust_list, thread.robust_list_bytes,
            RseqConfiguration(thread.rseq_address, thread.rseq_bytes, thread.rseq_signature, 0), thread.rseq_section,
            self._room.xstate(index), tuple(thread.dispatch), bytes(ffi.buffer(thread.descriptors)))

    def noticing(self) -> list[int]:
        """Return those that would notice the stop: their call returned EINTR, or they are in a section of rseq."""
        return [tid for index, tid in enumerate(self.tids) if lib.crd_thread_notices(self.c + index)]

    def obstructed(self) -> Stop | None:
        """Return how one has stopped that cannot be sent into a stub; None if all can."""
        index = lib.crd_threads_obstructed(self.c, len(self))
        return Stop(self.tids[index], self.c[index].status) if index < len(self) else None

    def detach(self, signals: Mapping[int, int]) -> dict[int, int]:
        """Let all go, the first one last, with a signal where ``signals`` has one; return as ``errors``."""
        lib.crd_threads_detach(self.c, len(self), [signals.get(tid, 0) for tid in self.tids])
        return self.errors()
