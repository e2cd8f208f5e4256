"""System calls in a live target, by stubs that find their own way home (``csrc/arch/x86_64/stubs.S``).

A stub and its data lie in the zero padding behind the vdso's ELF image (or behind the code of another mapped file),
so nothing of the target is overwritten.  Up to the one SETREGSET that sends a thread there nothing has changed; from
then on the thread comes home alone, whatever becomes of the tracer.  Rules of a stub's user:

* Every thread is stopped, and none is inside the room of the stubs (``inside``): if one is, a tracer before us died,
  and the thread will be out in no time; let all go and try again.
* A signal that is about to be delivered ends the attempt (``InjectionInterrupted``): let go with it, and try again.
"""

from __future__ import annotations

import os
import signal
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.errors import FeatureMissing, InjectionInterrupted, NativeError, TraceeGone
from crd.native import tracee
from crd.native.ffi import ffi, lib
from crd.native.syscall import NR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.native.memory import Memory
    from crd.native.tracee import Registers, Stop

_HOME = struct.Struct("<14Q3B5x")
_SCRIPT = struct.Struct("<2Q")
_CALL = struct.Struct("<7Q")
_SNAPSHOT = struct.Struct("<2Q")
_GENERATION = struct.Struct("<Q")
CALLS_MAX = 4
SCRATCH_BYTES = 4096

_MARGIN = 32
_SYSCALL_BYTES = 2
_FLAG_CF_TO_SF, _FLAG_TF, _FLAG_DF, _FLAG_OF, _FLAG_NT, _FLAG_AC = 0xD5, 0x100, 0x400, 0x800, 0x4000, 0x40000
_WORD = (1 << 64) - 1

# arch/x86/include/asm/syscall.h and include/linux/errno.h: what a call shows that the kernel would start again.
RESTART_WHOLE = {-512, -513, -514}  # ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND
RESTART_BLOCK = -516  # ERESTART_RESTARTBLOCK

_CLONE_VM, _CLONE_FS, _CLONE_FILES, _CLONE_PTRACE, _CLONE_VFORK, _CLONE_PARENT = (
    0x100, 0x200, 0x400, 0x2000, 0x4000, 0x8000)


@dataclass(frozen=True, slots=True)
class Scratch:
    """As an argument of a call: an address ``offset`` bytes into the scratch area (results lie in its first words)."""

    offset: int


@dataclass(frozen=True, slots=True)
class Call:
    """A system call of a script."""

    number: int
    arguments: tuple[int | Scratch, ...] = ()

    def encode(self) -> bytes:
        """Return the words of the stub's table."""
        word, values = self.number, [0] * 6
        for position, argument in enumerate(self.arguments):
            if isinstance(argument, Scratch):
                word |= 1 << 32 + position
                values[position] = argument.offset
            else:
                values[position] = argument & _WORD
        return _CALL.pack(word, *values)


@dataclass(frozen=True, slots=True)
class ScriptResult:
    """What the calls returned (negative errno for an error), and the scratch area as they left it."""

    results: tuple[int, ...]
    scratch: bytes


def home_registers(registers: Registers) -> Registers:
    """Return the registers with which a thread goes on by itself as the kernel would let it.

    A call that is to be started again is wound back to its ``syscall`` instruction.
    """
    home = registers.copy()
    if registers.in_syscall and registers.result in RESTART_WHOLE:
        home.rax, home.rip = registers.orig_rax, registers.rip - _SYSCALL_BYTES
    elif registers.in_syscall and registers.result == RESTART_BLOCK:
        home.rax, home.rip = NR.RESTART_SYSCALL, registers.rip - _SYSCALL_BYTES
    home.orig_rax = -1
    return home


class Injector:
    """Makes system calls in the threads of one stopped process.

    Attributes:
        start, end: the room of the stubs.
    """

    def __init__(self, memory: Memory, candidates: Sequence[tuple[int, int]]) -> None:
        """Find room for two stubs.

        Args:
            memory: of the target, writable.
            candidates: (start, end) of executable file-backed mappings, the vdso first.

        Raises:
            FeatureMissing: there is no room.
        """
        script, snapshot = lib.crd_stub_script_code(), lib.crd_stub_snapshot_code()
        self._script = bytes(ffi.buffer(script.start, script.length))
        self._snapshot = bytes(ffi.buffer(snapshot.start, snapshot.length))
        longest = max(len(self._script) + CALLS_MAX * _CALL.size, len(self._snapshot))
        self._slot_bytes = (longest + _GENERATION.size + 15) & ~15
        self._memory = memory
        self._left_behind: list[int] = []
        self.start, self.end = self._find_room(candidates)

    def _find_room(self, candidates: Sequence[tuple[int, int]]) -> tuple[int, int]:
        for start, end in candidates:
            tail_start = max(start, end - 8192)
            with suppress(NativeError):
                tail = self._memory.read(tail_start, end - tail_start)
                used = self._used(tail)
                if len(tail) - used >= 2 * self._slot_bytes:
                    return end - 2 * self._slot_bytes, end
        raise FeatureMissing("the target's code has no padding that could hold a stub",
                             hint="crd copies such a target while it is stopped (--method copy).")

    def _used(self, tail: bytes) -> int:
        """Return how much of the end of a mapping is in use; what an earlier stub left there is not."""
        slots = len(tail) - 2 * self._slot_bytes
        earlier = slots > 0 and any(
            tail.startswith(code[:32], slots + index * self._slot_bytes)
            for code in (self._script, self._snapshot) for index in (0, 1))
        return len((tail[:slots] if earlier else tail).rstrip(b"\0")) + _MARGIN * (not earlier)

    def inside(self, registers: Registers) -> bool:
        """Whether a thread is inside a stub that a tracer before us began."""
        return self.start <= registers.rip < self.end

    def can_carry(self, registers: Registers) -> bool:
        """Whether a stub can bring this thread home: TF, NT and AC must be clear."""
        return not registers.eflags & (_FLAG_TF | _FLAG_NT | _FLAG_AC)

    def script(self, tid: int, original: Registers, calls: Sequence[Call]) -> ScriptResult:
        """Make up to CALLS_MAX system calls in a thread; it ends where it was, stopped.

        Args:
            tid: a stopped tracee with TRACESYSGOOD.
            original: its registers.
            calls: they may point into a scratch area of SCRATCH_BYTES, zero at first.

        Raises:
            InjectionInterrupted: try again after letting go.
            NativeError: the target could not map the scratch area.
            TraceeGone: it ended.
        """
        if len(calls) > CALLS_MAX:
            raise ValueError("too many calls for a stub")
        if self._left_behind:
            address = self._left_behind.pop()
            self.script(tid, original, [Call(NR.MUNMAP, (address, SCRATCH_BYTES))])
        task = _SCRIPT.pack(SCRATCH_BYTES, len(calls)) + b"".join(call.encode() for call in calls)
        self._send(tid, original, self._script, task)
        scratch = 0
        try:
            self._advance(tid, original, 2)
            scratch = tracee.get_registers(tid).rax
            if scratch > _WORD - 4096:
                raise NativeError(f"the target cannot map a page: {scratch - 2**64}", tid=tid)
            self._advance(tid, original, 2 * len(calls) + 1)
            content = self._memory.read(scratch, SCRATCH_BYTES)
            self._advance(tid, original, 1)
        except InjectionInterrupted:
            if 0 < scratch <= _WORD - 4096:
                self._left_behind.append(scratch)
            raise
        self._come_home(tid, original)
        return ScriptResult(struct.unpack_from(f"<{len(calls)}q", content), content)

    def snapshot(self, tid: int, original: Registers, *, child_of_target: bool = False) -> int:
        """Make a copy-on-write child of the target that stays stopped, is our tracee, and dies with us.

        Args:
            tid: a stopped tracee with TRACESYSGOOD.
            original: its registers.
            child_of_target: make it a child of the target itself, invisible to its wait(2) but for __WALL: for targets
                below a subreaper.  It must then be reaped by a wait4(pid, NULL, __WALL) in the target.

        Returns:
            The pid of the child.

        Raises:
            InjectionInterrupted: try again after letting go.
            NativeError: the kernel makes no child: EAGAIN, ENOMEM.
            TraceeGone: the target ended.
        """
        middle_flags = _CLONE_VM | _CLONE_VFORK | _CLONE_FS | _CLONE_FILES | _CLONE_PTRACE
        child_flags = _CLONE_FS | _CLONE_FILES | _CLONE_PTRACE | (_CLONE_PARENT if child_of_target else 0)
        self._send(tid, original, self._snapshot, _SNAPSHOT.pack(middle_flags, child_flags))
        family = _Family(tid)
        try:
            self._advance(tid, original, 2, family)
            middle = tracee.get_registers(tid).result
            if middle < 0:
                self._come_home(tid, original)
                raise NativeError(f"the target cannot be forked: errno {-middle}", errno=-middle, operation="clone",
                                  tid=tid)
            self._advance(tid, original, 2, family)
        except InjectionInterrupted:
            family.kill()
            raise
        self._come_home(tid, original)
        if not family.child:
            raise NativeError(f"the target cannot be forked: errno {family.exit_code}", errno=family.exit_code,
                              operation="clone", tid=tid)
        return family.child

    def _send(self, tid: int, original: Registers, code: bytes, task: bytes) -> None:
        """Write a stub into the slot that was used longest ago, and send the thread there."""
        ends = [self.start + self._slot_bytes, self.end]
        ages = [int.from_bytes(self._memory.read(end - 8, 8), "little") for end in ends]
        oldest = ages.index(min(ages))
        slot = ends[oldest] - self._slot_bytes
        content = code[:-_HOME.size - 16] + _home_data(home_registers(original)) + task
        content = content.ljust(self._slot_bytes - 8, b"\0") + _GENERATION.pack(max(ages) + 1)
        self._memory.write(slot, content)
        there = original.copy()
        there.rip, there.orig_rax = slot, -1
        tracee.set_registers(tid, there)

    def _advance(self, tid: int, original: Registers, stops: int, family: _Family | None = None) -> None:
        """Let the thread run through a number of system-call stops."""
        while stops:
            tracee.to_syscall(tid)
            while (stop := tracee.wait(-1 if family else tid)) and family and stop.tid != tid:
                family.report(stop)
            if stop is None or stop.ended:
                raise TraceeGone(f"task {tid} ended", tid=tid)
            if stop.is_syscall:
                stops -= 1
            elif stop.is_signal:
                tracee.set_registers(tid, original)
                raise _interrupted(stop)

    def _come_home(self, tid: int, original: Registers) -> None:
        """Bring the thread from an exit stop to an event stop, and put its registers back.

        From there the kernel restarts an interrupted call exactly, restart block included, once it is let go: unlinking
        takes it through get_signal.
        """
        tracee.interrupt(tid)
        tracee.cont(tid)
        stop = tracee.wait(tid)
        if stop is None or stop.ended:
            raise TraceeGone(f"task {tid} ended", tid=tid)
        tracee.set_registers(tid, original)
        if stop.is_signal:
            raise _interrupted(stop)


class _Family:
    """The middle task and the child of a snapshot, as their stops come in."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.middle = 0
        self.child = 0
        self.exit_code = 0

    def report(self, stop: Stop) -> None:
        """Take note of a stop of one of them."""
        if stop.ended:
            self.exit_code = stop.signal
        elif not self.middle:
            self.middle = stop.tid
            tracee.cont(stop.tid)
        elif stop.tid == self.middle:
            tracee.cont(stop.tid, 0 if stop.event else stop.signal)
        else:
            self.child = stop.tid
            tracee.set_options(stop.tid, tracee.OPTION_EXITKILL | tracee.OPTION_TRACESYSGOOD)

    def kill(self) -> None:
        """End the child if there is one."""
        if self.child:
            os.kill(self.child, signal.SIGKILL)
            tracee.wait(self.child)


def _interrupted(stop: Stop) -> InjectionInterrupted:
    return InjectionInterrupted(f"signal {stop.signal} is due for task {stop.tid}", signal=stop.signal, tid=stop.tid)


def _home_data(home: Registers) -> bytes:
    flags = home.eflags
    return _HOME.pack(
        *[word & _WORD for word in (
            home.rip, home.rax, home.rcx, home.rdx, home.rsi, home.rdi, home.r8, home.r9, home.r10, home.r11, home.r12,
            home.r13, home.r14, home.r15)],
        bool(flags & _FLAG_OF), flags & _FLAG_CF_TO_SF | 2, bool(flags & _FLAG_DF))
