"""Waits with a timeout that a stop ends: their time does not begin anew for ever.

It would for a program that is saved more often than its timeout is long.  How long a thread has slept only the
scheduler knows: it keeps when a thread last ran (``se.exec_start`` of /proc/TID/sched; update_curr in
kernel/sched/fair.c), by a clock that each processor has of its own (rq_clock_task), which leaves out what others took.

Those of epoll_wait(2) have their timeout in a register, and begin again with what is left of it.  The others have it in
memory of the program, or in a socket, where it is not ours to change: they begin again with all of it, but what is over
is kept, and a stop that finds that nothing is left has the call return as it does when its time has run out.  So it may
end late, by up to the time from one checkpoint to the next, and never early.  What is over is kept in the upper half of
rax: the kernel takes the number of a call from the lower half (Linux 5.14), and the result overwrites both.  So the
program cannot see it, no memory has it, and it is in the image like any register.

Not those of connect(2), whose result depends on the protocol, which gives up by itself, nor of splice(2), which may
wait at either end: they begin anew.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from crd.errors import CrdError, NativeError
from crd.native.memory import Memory
from crd.native.syscall import NR, pidfd_getfd, syscall
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from crd.native.tracee import Registers
    from crd.target.procfs import Status

_WITH_MILLISECONDS = {232, 281}  # epoll_wait, epoll_pwait: their timeout is the fourth argument
_WITH_TIMESPEC = {441: 3, 128: 2, 220: 3}  # epoll_pwait2, rt_sigtimedwait, semtimedop: which argument points to it
_RECEIVING = {0, 19, 327, 45, 47, 299, 43, 288}  # read, readv, preadv2, recvfrom, recvmsg, recvmmsg, accept, accept4
_SENDING = {1, 20, 328, 44, 46, 307, 40}  # write, writev, pwritev2, sendto, sendmsg, sendmmsg, sendfile
_EPOLL_PWAIT2 = 441
_TIME = struct.Struct("<2q")  # timespec, timeval
_HALF = 32
_MILLISECONDS_MAX = (1 << 31) - 1
_PROCESSOR = 39  # proc_pid_stat(5)
_NAP_SECONDS = 0.00005


@dataclass(frozen=True, slots=True)
class Wait:
    """That of a thread, looked at before the stop.

    Attributes:
        since: time.monotonic() when it fell asleep, or a little later.
        sleeps: how often it had gone to sleep by then (voluntary_ctxt_switches).
        timeout_ms: of the call, where that is not in a register; else 0.
    """

    since: float
    sleeps: int
    timeout_ms: int

    def is_over(self, registers: Registers, status: Status) -> bool:
        """Take off the call that is to begin again what is over of its timeout, if it is this wait that the stop ended.

        Args:
            registers: of the call.
            status: of the thread in the stop, which is the next sleep.

        Returns:
            Whether the call returns instead, since its time is over: the registers say so.
        """
        if int(status["voluntary_ctxt_switches"]) != self.sleeps + 1:
            return False
        over = int((time.monotonic() - self.since) * 1000)
        if not self.timeout_ms:
            registers.r10 = max(0, _timeout(registers.r10) - over)
            return False
        over += registers.orig_rax >> _HALF
        if over < self.timeout_ms:
            registers.orig_rax = over << _HALF | number(registers)
            return False
        registers.rax, registers.orig_rax = 0 if number(registers) == _EPOLL_PWAIT2 else -errno.EAGAIN, -1
        return True


def number(registers: Registers) -> int:
    """Return the number of the call in progress, without what may be kept beside it."""
    return registers.orig_rax & (1 << _HALF) - 1


def look(threads: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Wait]:
    """Return those of some threads that wait so, and not for ever; none where the kernel does not tell.

    Args:
        threads: pid and tid of each; they run on.
    """
    slept: dict[int, list[tuple[tuple[int, int], float, int, int]]] = {}
    for pid, tid in threads:
        with suppress(CrdError, KeyError, OSError):  # it has ended, or the kernel was built without CONFIG_SCHED_DEBUG
            thread = f"{pid}/task/{tid}"
            if (timeout_ms := _timeout_of(pid, thread)) is not None:
                told = _scheduler(thread)
                slept.setdefault(procfs.stat(thread).field(_PROCESSOR), []).append(
                    ((pid, tid), float(told["se.exec_start"]) / 1000, int(told["nr_voluntary_switches"]), timeout_ms))
    found: dict[tuple[int, int], Wait] = {}
    for processor, those in slept.items():
        with suppress(OSError, CrdError, KeyError), _on(processor):  # it may not be one of ours
            ahead = _clock_ahead()
            found |= {thread: Wait(at - ahead, sleeps, timeout_ms) for thread, at, sleeps, timeout_ms in those}
    return found


def _timeout_of(pid: int, thread: str) -> int | None:
    """Return the timeout that a thread waits with, in milliseconds; 0: it is in a register; None: it has none."""
    word, *words = procfs.read(thread, "syscall").split()
    if not word.isdecimal():
        return None
    call, arguments = int(word), [int(argument, 16) for argument in words]
    if call in _WITH_MILLISECONDS:
        return 0 if _timeout(arguments[3]) > 0 else None
    if call in _WITH_TIMESPEC:
        address = arguments[_WITH_TIMESPEC[call]]
        return _of_memory(pid, address) if address and _half_is_free() else None
    if call in _RECEIVING or call in _SENDING:
        option = socket.SO_RCVTIMEO if call in _RECEIVING else socket.SO_SNDTIMEO
        return _of_socket(pid, arguments[0], option) if _half_is_free() else None
    return None


def _of_memory(pid: int, address: int) -> int | None:
    with Memory(pid, writable=False) as memory:
        seconds, nanoseconds = _TIME.unpack(memory.read(address, _TIME.size))
    return _milliseconds(seconds, -(-nanoseconds // 1_000_000))


def _of_socket(pid: int, fd: int, option: int) -> int | None:
    if not procfs.read_link(pid, f"fd/{fd}").startswith("socket:"):
        return None
    pidfd = os.pidfd_open(pid)
    try:
        with socket.socket(fileno=pidfd_getfd(pidfd, fd)) as ours:
            seconds, microseconds = _TIME.unpack(ours.getsockopt(socket.SOL_SOCKET, option, _TIME.size))
    finally:
        os.close(pidfd)
    return _milliseconds(seconds, -(-microseconds // 1000))


def _milliseconds(seconds: int, more: int) -> int | None:
    total = seconds * 1000 + more
    return total if 0 < total <= _MILLISECONDS_MAX else None


@cache
def _half_is_free() -> bool:
    """Whether the kernel looks at the lower half alone of the number of a call."""
    try:
        return syscall(1 << _HALF | NR.GETPID) == os.getpid()
    except NativeError:
        return False


def _timeout(argument: int) -> int:
    """Return an int of a register; negative: for ever."""
    low = argument & 0xFFFFFFFF
    return low - (low >> 31 << 32)


def _scheduler(thread: str) -> dict[str, str]:
    """Return what the scheduler tells of a thread (proc_sched_show_task in kernel/sched/debug.c)."""
    lines = (line.partition(":") for line in procfs.read(thread, "sched").splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


@contextmanager
def _on(processor: int) -> Iterator[None]:
    """Run on a processor meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {processor})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _clock_ahead() -> float:
    """Return how many seconds the clock of the processor that we run on is ahead of time.monotonic()."""
    time.sleep(_NAP_SECONDS)  # it is now that we have last begun to run
    now = time.monotonic()
    return float(_scheduler("thread-self")["se.exec_start"]) / 1000 - now
