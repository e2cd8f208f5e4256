"""System calls in processes of our own (vessels, snapshot children): hundreds per stop.

The process must be a tracee that is stopped and dies with us (EXITKILL): a batch ends in a SIGTRAP.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.errors import NativeError, TraceeGone
from crd.native import tracee
from crd.native.ffi import ffi, lib
from crd.native.syscall import NR
from crd.native.tracee import signed

if TYPE_CHECKING:
    from crd.native.memory import Memory

TABLE_OFFSET = 4096
_CALLS_MAX = 1024
_CALL = struct.Struct("<8Q")
_UNCHECKED, _LOOK, _HAND_OVER = 1 << 38, 1 << 39, 1 << 40
_WORD = (1 << 64) - 1
_FROM_OUTSIDE = {signal.SIGSTOP, signal.SIGTRAP}  # not blocked
_SI_TKILL = -6
_ALL_BUT_SIGTRAP = _WORD & ~(1 << signal.SIGTRAP - 1)
DATA_OFFSET = TABLE_OFFSET + _CALLS_MAX * _CALL.size
_SYSCALL_INSTRUCTION = b"\x0f\x05"
_READ_WRITE, _READ_EXECUTE = 3, 5
_NEW, _OVER_IT = 0x100022, 0x32  # MAP_FIXED_NOREPLACE, or MAP_FIXED, with MAP_ANONYMOUS and MAP_PRIVATE


@dataclass(frozen=True, slots=True)
class Result:
    """As an argument: what an earlier call of the same batch returned."""

    index: int


_Call = tuple[int, tuple[int | Result, ...], bool, str]


class Batch:
    """A table of system calls, their data, and the results.

    Data and table live in a scratch area of ``SCRATCH_BYTES`` that ``map_scratch`` made in the process.
    """

    SCRATCH_BYTES = DATA_OFFSET + (256 << 10)

    def __init__(self, memory: Memory, scratch: int) -> None:
        """Prepare an empty batch for the process whose memory this is."""
        self._memory = memory
        self._scratch = scratch
        self._calls: list[_Call] = []
        self._data = bytearray()

    def __len__(self) -> int:
        return len(self._calls)

    def call(self, number: int, *arguments: int | Result, check: bool = True, what: str = "") -> Result:
        """Add a call.

        Args:
            number: of the call (NR).
            arguments: numbers, addresses from ``data``, or results of calls before.
            check: whether an error of it is one of the batch.
            what: for the error message.
        """
        self._calls.append((number, arguments, check, what))
        return Result(len(self._calls) - 1)

    def look(self, start: int, pages: int, found: int) -> Result:
        """Have the process look which of its pages hold anything but zeros; one that it may not read ends the batch.

        Args:
            start: of the pages.
            pages: how many.
            found: address of a byte for each, zero at first, which becomes 1.
        """
        return self.call(_LOOK, start, pages, found, what="looking through memory")

    def hand_over(self, pipe: int, start: int, length: int) -> Result:
        """Have the process put pages of its own into a pipe by reference (vmsplice(2)), as its reader makes room.

        Args:
            pipe: descriptor of the process.
            start: of the pages.
            length: of them in bytes.
        """
        return self.call(_HAND_OVER, pipe, start, length, what="handing over memory")

    def data(self, content: bytes | bytearray, align: int = 8) -> int:
        """Add bytes for a call to point to; return their address in the process."""
        self._data += bytes(-len(self._data) % align)
        at = len(self._data)
        self._data += content
        if DATA_OFFSET + len(self._data) > self.SCRATCH_BYTES:
            raise ValueError("the batch's data do not fit its scratch area")
        return self._scratch + DATA_OFFSET + at

    def text(self, text: str) -> int:
        """Add a NUL-terminated string."""
        return self.data(os.fsencode(text) + b"\0", align=1)

    @property
    def has_room(self) -> bool:
        """Whether a few dozen more calls and 64 KiB of data fit."""
        return len(self._calls) < _CALLS_MAX - 64 and DATA_OFFSET + len(self._data) < self.SCRATCH_BYTES - (64 << 10)

    def run(self, tid: int) -> list[int]:
        """Execute all calls in the thread, in order, and return their results (negative errno for an error).

        The registers of the thread are not kept.  Afterwards the batch is empty.

        Raises:
            NativeError: a checked call failed; none after it was made.
            TraceeGone: the process ended.
        """
        return self.start(tid).finish()

    def start(self, tid: int) -> Running:
        """Begin to execute all calls in the thread; afterwards the batch is empty."""
        calls, self._calls = self._calls, []
        data, self._data = self._data, bytearray()
        if len(calls) > _CALLS_MAX:
            raise ValueError("too many calls for a batch")
        table = self._scratch + TABLE_OFFSET
        if calls:
            self._memory.write(table, b"".join(_encode(*call[:3]) for call in calls))
            if data:
                self._memory.write(self._scratch + DATA_OFFSET, data)
            registers = tracee.get_registers(tid)
            registers.rip, registers.rbx, registers.rbp, registers.orig_rax = self._scratch, table, len(calls), -1
            tracee.set_registers(tid, registers)
            tracee.cont(tid)
        return Running(self._memory, tid, table, calls)

    def read(self, address: int, length: int) -> bytes:
        """Return what a call left at an address from ``data``."""
        return self._memory.read(address, length)


class Running:
    """A batch that is being executed."""

    def __init__(self, memory: Memory, tid: int, table: int, calls: list[_Call]) -> None:
        """Follow it; ``Batch.start`` makes these."""
        self._memory = memory
        self._tid = tid
        self._table = table
        self._calls = calls
        self._ended = not calls

    def has_ended(self, deadline: float | None = None) -> bool:
        """Wait until it has ended, or until time.monotonic() is ``deadline``.

        Raises:
            NativeError: a signal hit the thread.
            TraceeGone: it ended.
        """
        tid = self._tid
        while not self._ended:
            stop = tracee.wait(tid) if deadline is None else tracee.wait_until(deadline, tid)
            if stop is None:
                return False
            if stop.ended:
                raise TraceeGone(f"task {tid} ended inside a batch", tid=tid)
            if stop.is_signal and _is_end(tid):
                self._ended = True
            elif stop.is_signal and stop.signal not in _FROM_OUTSIDE:
                raise NativeError(f"task {tid} was hit by signal {stop.signal} inside a batch", tid=tid)
            else:
                tracee.cont(tid)  # the event stop of an INTERRUPT before, or somebody's kill(2)
        return True

    def finish(self) -> list[int]:
        """Return what ``Batch.run`` does, and raise as it."""
        self.has_ended()
        calls, tid = self._calls, self._tid
        words = struct.unpack(f"<{len(calls) * 8}Q", self._memory.read(self._table, len(calls) * _CALL.size))
        results = [signed(word) for word in words[7::8]]
        for (number, arguments, check, what), result in zip(calls, results, strict=True):
            if check and -4096 < result < 0:
                raise _failure(number, arguments, what, -result, tid)
        return results


def _is_end(tid: int) -> bool:
    """Whether the thread is about to take the SIGTRAP that it has sent to itself."""
    number, _errno, code = struct.unpack_from("<3i", tracee.get_siginfo(tid))
    return bool(number == signal.SIGTRAP and code == _SI_TKILL)


def map_scratch(memory: Memory, tid: int, address: int, syscall_at: int) -> Batch:
    """Map the scratch area of a batch into a stopped tracee of ours; nothing of it is writable and executable.

    From here on all signals of the thread, and of those it makes, are blocked but for SIGTRAP, the end of a batch.

    Args:
        memory: of the process.
        tid: its thread.
        address: where nothing is mapped; a page boundary.
        syscall_at: address of a ``syscall`` instruction in the process, see ``find_syscall``.

    Raises:
        NativeError: mmap failed.
    """
    for length, rights, how in ((Batch.SCRATCH_BYTES, _READ_WRITE, _NEW), (TABLE_OFFSET, _READ_EXECUTE, _OVER_IT)):
        remote_syscall(tid, syscall_at, NR.MMAP, address, length, rights, how, -1, 0)
    tracee.set_signal_mask(tid, _ALL_BUT_SIGTRAP)
    code = lib.crd_batch_code()
    memory.write(address, bytes(ffi.buffer(code.start, code.length)))
    return Batch(memory, address)


def find_syscall(memory: Memory, start: int, length: int) -> int:
    """Return the address of a ``syscall`` instruction in code, such as the vdso's.

    Raises:
        NativeError: there is none.
    """
    at = memory.read(start, length).find(_SYSCALL_INSTRUCTION)
    if at < 0:
        raise NativeError(f"no syscall instruction at {start:#x}", address=start)
    return start + at


def remote_syscall(tid: int, syscall_at: int, number: int, *arguments: int) -> int:
    """Make one system call in a stopped tracee of ours; its registers are not kept.

    Raises:
        NativeError: it returned an error.
    """
    registers = tracee.get_registers(tid)
    words = [*arguments, 0, 0, 0, 0, 0, 0]
    registers.rax, registers.orig_rax, registers.rip = number, -1, syscall_at
    registers.rdi, registers.rsi, registers.rdx = words[0], words[1], words[2]
    registers.r10, registers.r8, registers.r9 = words[3], words[4], words[5]
    tracee.set_registers(tid, registers)
    syscall_stops = 0
    while syscall_stops < 2:
        tracee.to_syscall(tid)
        stop = tracee.wait(tid)
        if stop.ended:
            raise TraceeGone(f"task {tid} ended", tid=tid)
        syscall_stops += stop.is_syscall
    result = tracee.get_registers(tid).result
    if -4096 < result < 0:
        raise _failure(number, arguments, "", -result, tid)
    return result


def _encode(number: int, arguments: tuple[int | Result, ...], check: bool) -> bytes:  # noqa: FBT001
    word = number if check else number | _UNCHECKED
    values = [0] * 6
    for position, argument in enumerate(arguments):
        if isinstance(argument, Result):
            word |= 1 << 32 + position
            values[position] = argument.index
        else:
            values[position] = argument & _WORD
    return _CALL.pack(word, *values, 0)


def _failure(number: int, arguments: tuple[int | Result, ...], what: str, code: int, tid: int) -> NativeError:
    name = next((name for name, value in vars(NR).items() if value == number), str(number)).lower()
    shown = ", ".join(f"{value:#x}" if isinstance(value, int) else "result" for value in arguments)
    return NativeError(f"{what or f'{name}({shown})'} in task {tid}: {os.strerror(code)}",
                       operation=name, errno=code, tid=tid, errno_name=errno.errorcode.get(code, str(code)))
