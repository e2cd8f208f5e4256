"""System calls in a live target, by stubs that find their own way home (``csrc/arch/x86_64/stubs.S``).

A stub and its data lie in the zero padding behind the vdso's ELF image (or behind the code of another mapped file),
so nothing of the target is overwritten.  Up to the one SETREGSET that sends a thread there nothing has changed; from
then on the thread comes home alone, whatever becomes of the tracer.  Rules of a stub's user:

* Every thread is stopped, and none is inside the room of the stubs (``inside``): if one is, a tracer before us died,
  and the thread will be out in no time; let all go and try again.
* A thread that was stopped before the delivery of a signal carries no stub (``InjectionInterrupted``): let go with the
  signal, then try again.  Signals that are queued wait until the thread is home, since all are blocked meanwhile.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crd.errors import FeatureMissing, NativeError
from crd.native import tracee
from crd.native.detour import PATIENCE_NS, Detour
from crd.native.family import Family
from crd.native.ffi import ffi, lib
from crd.native.passage import come_home, go_through, interrupted
from crd.native.room import NO_AREA, Area, find_room
from crd.native.syscall import NR

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from crd.native.memory import Memory
    from crd.native.threads import ThreadGroup
    from crd.native.tracee import Registers

_HOME_BYTES: int = lib.CRD_HOME_BYTES
_TASK = struct.Struct("<2Q")
_SNAPSHOT_TASK = struct.Struct("<4Q")
_WAITING_TASK = struct.Struct("<6Q")
_CALL = struct.Struct("<7Q")
CALL_BYTES = _CALL.size
_GENERATION = struct.Struct("<Q")
CALLS_MAX = 4
SCRATCH_BYTES = 4096


def _code(stub: Any, task: struct.Struct) -> bytes:
    """Return the code of a stub, without the data at its end."""
    return bytes(ffi.buffer(stub.start, stub.length - _HOME_BYTES - task.size))


_SCRIPT = _code(lib.crd_stub_script_code(), _TASK)
_SNAPSHOT = _code(lib.crd_stub_snapshot_code(), _SNAPSHOT_TASK)
_WAITING = _code(lib.crd_stub_survey_code(), _WAITING_TASK)
_LONGEST = _HOME_BYTES + max(len(_SCRIPT) + _TASK.size + CALLS_MAX * _CALL.size, len(_SNAPSHOT) + _SNAPSHOT_TASK.size,
                             len(_WAITING) + _WAITING_TASK.size + CALLS_MAX * _CALL.size)
_SLOT_BYTES = (_LONGEST + _GENERATION.size + 15) & ~15

_WORD = (1 << 64) - 1
_WORD_BYTES = 8
_NANOSECONDS = 1_000_000_000
_ERRNO_MAX = 4095
_MAP_FIXED_NOREPLACE = 0x100000

_CLONE_VM, _CLONE_FS, _CLONE_FILES, _CLONE_VFORK, _CLONE_PARENT = 0x100, 0x200, 0x400, 0x4000, 0x8000


@dataclass(frozen=True, slots=True)
class Scratch:
    """As an argument of a call: an address ``offset`` bytes into the scratch area (results lie in its first words)."""

    offset: int


@dataclass(frozen=True, slots=True)
class Call:
    """A system call of a script."""

    number: int
    arguments: tuple[int | Scratch, ...] = ()

    def words(self, scratch: int) -> list[int]:
        """Return the seven words of the stub's table, with the scratch area at this address."""
        words = [scratch + argument.offset if isinstance(argument, Scratch) else argument & _WORD
                 for argument in self.arguments]
        return [self.number, *words, *[0] * (6 - len(words))]

    def relative(self) -> list[bool]:
        """Say of each of the words whether it is an address in the scratch area."""
        return [False, *(isinstance(argument, Scratch) for argument in self.arguments), *[False] * 6][:7]


@dataclass(frozen=True, slots=True)
class ScriptResult:
    """What the calls returned (negative errno for an error), and the scratch area as they left it."""

    results: tuple[int, ...]
    scratch: bytes


def home_registers(registers: Registers) -> Registers:
    """Return the registers with which a thread goes on by itself as the kernel would let it.

    A call that is to be started again is wound back to its ``syscall`` instruction.
    """
    home = bytearray(registers.to_bytes())
    lib.crd_home_registers(ffi.from_buffer(home))
    return type(registers).from_bytes(bytes(home))


class Injector:
    """Makes system calls in the threads of one stopped process."""

    def __init__(self, memory: Memory, candidates: Sequence[tuple[int, int]]) -> None:
        """Find room for at least two stubs in a target that is stopped, and claim it.

        Args:
            memory: of the target, writable.
            candidates: (start, end) of executable file-backed mappings, the vdso first.

        Raises:
            FeatureMissing: there is no room.
        """
        self.memory = memory
        self._room = find_room(memory, candidates, 2 * _SLOT_BYTES)
        self._area = NO_AREA
        self._leftover = self._room.left
        if not self._room.claimed:
            memory.write(*self._room.claim())
        self._slots = range(self._room.start, self._room.end - _SLOT_BYTES + 1, _SLOT_BYTES)
        self._generations = [_GENERATION.unpack_from(self._room.content, slot - self._room.start + _SLOT_BYTES
                                                     - _GENERATION.size)[0] for slot in self._slots]

    def inside(self, address: int) -> bool:
        """Whether a thread that is at this address is inside a stub that a tracer before us began."""
        return self._room.start <= address < self._room.end or address in self._leftover

    def script(self, tid: int, original: Registers, calls: Sequence[Call],
               scratch_bytes: int = SCRATCH_BYTES) -> ScriptResult:
        """Make up to CALLS_MAX system calls in a thread; it ends where it was, stopped.

        Args:
            tid: a stopped tracee with TRACESYSGOOD.
            original: its registers.
            calls: they may point into a scratch area, zero at first.
            scratch_bytes: of that.

        Raises:
            InjectionInterrupted: try again after letting go.
            FeatureMissing: a stub cannot bring this thread home.
            NativeError: the target could not map the scratch area.
            TraceeGone: it ended.
        """
        if len(calls) > CALLS_MAX:
            raise ValueError("too many calls for a stub")
        task = self._send(tid, original, _SCRIPT, _TASK.pack(scratch_bytes, 0))
        go_through(tid, original, 3)  # to the exit of mmap
        scratch = tracee.get_registers(tid).result
        mapped = not -_ERRNO_MAX <= scratch < 0
        content = b""
        if mapped:
            self.memory.write(task, _TASK.pack(scratch_bytes, len(calls)) + b"".join(
                _CALL.pack(*call.words(scratch)) for call in calls))
            go_through(tid, original, 2 * len(calls) + 1)  # to the entry of munmap
            content = self.memory.read(scratch, scratch_bytes)
            go_through(tid, original, 1)
        go_through(tid, original, 2)  # to the exit of the last rt_sigprocmask
        come_home(tid, original)
        if not mapped:
            raise NativeError(f"the target cannot map a page: {os.strerror(-scratch)}", operation="mmap",
                              errno=-scratch, tid=tid)
        return ScriptResult(struct.unpack_from(f"<{len(calls)}q", content), content)

    def plain(self, tid: int, original: Registers, calls: Sequence[Call]) -> list[int]:
        """Make up to CALLS_MAX system calls that need no scratch area, and return what they returned.

        Args, Raises: as ``script``.
        """
        return list(self.steps(tid, original, calls))

    def steps(self, tid: int, original: Registers, calls: Sequence[Call]) -> Iterator[int]:
        """Do as ``plain``, but give each result while the thread is stopped at the exit of its call.

        What one call makes can so be looked at before the next takes it away, and is taken away even if we die.  To be
        gone through to its end.
        """
        self._send(tid, original, _SCRIPT, _TASK.pack(0, len(calls)) + b"".join(
            _CALL.pack(*call.words(0)) for call in calls))
        for index in range(len(calls)):
            go_through(tid, original, 3 if index == 0 else 2)  # to its exit
            yield tracee.get_registers(tid).result
        go_through(tid, original, 2)  # to the exit of the last rt_sigprocmask
        come_home(tid, original)

    def mapping(self, group: ThreadGroup, area: Area, writable_bytes: int) -> Detour:
        """Have the first thread of a process map an area, until ``snapshot``, ``unmapping`` or ``unmap_area``.

        It is noted in the room, for who comes after us.

        Args:
            group: all threads, which have been read, stand outside of stubs, and can be brought home by them.
            area: free addresses, whole pages.
            writable_bytes: of its beginning, whole pages; the rest can be executed.

        Returns:
            What is to be taken; if it fails, part of the area may be there.
        """
        parts = [(area.start, writable_bytes, mmap.PROT_READ | mmap.PROT_WRITE),
                 (area.start + writable_bytes, area.length - writable_bytes, mmap.PROT_READ | mmap.PROT_EXEC)]
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED_NOREPLACE
        self._area = area
        return self._detour(group, [Call(NR.MMAP, (start, length, rights, flags, _WORD, 0))
                                    for start, length, rights in parts],
                            lib.CRD_UNTIL_MAPPED, area.start + area.length - _WORD_BYTES, self._room.claim(area))

    def unmapping(self, group: ThreadGroup) -> Detour | None:
        """Have the first thread of a process unmap the area, if there is one; to be followed by ``forget_area``.

        Args, Returns: as ``mapping``.
        """
        area = self._area
        return self._detour(group, [Call(NR.MUNMAP, (area.start, area.length))], lib.CRD_UNTIL_UNMAPPED,
                            area.start) if area.length else None

    def forget_area(self) -> None:
        """Note that there is no area any more."""
        self._area = NO_AREA
        self.memory.write(*self._room.claim())

    def _detour(self, group: ThreadGroup, calls: Sequence[Call], until: int, address: int,
                *more: tuple[int, bytes]) -> Detour:
        """Write a stub with which the first thread makes calls and waits (``struct crd_survey``), and more before."""
        home = ffi.new("unsigned char[]", _HOME_BYTES)
        lib.crd_stub_home(group.c[0].registers, group.c[0].mask, home)
        code = _WAITING + bytes(home)
        slot = self._next_slot()
        task = _WAITING_TASK.pack(slot + len(code) + _WAITING_TASK.size, len(calls), 0, 0,
                                  *divmod(PATIENCE_NS, _NANOSECONDS))
        self._write(slot, code + task + b"".join(_CALL.pack(*call.words(0)) for call in calls), *more)
        return Detour(self.memory.pid, group, 1, until=until, slots=slot, slot_bytes=_SLOT_BYTES, data=address)

    def leave_area(self) -> None:
        """Leave the area to the next tracer, since some thread may be in it."""
        self._area = NO_AREA

    def unmap_area(self, tid: int, original: Registers) -> None:
        """Unmap the area, if there is one, with arguments as of ``map_area``."""
        area, self._area = self._area, NO_AREA
        self._unmap(tid, original, [area] if area != NO_AREA else [])

    def remove_leftover(self, tid: int, original: Registers, areas: Iterable[tuple[int, int, str]]) -> bool:
        """Unmap what a tracer before us has left, and return whether there was anything.

        Args:
            tid: as ``area``.
            original: as ``area``.
            areas: (start, end, permissions) of the private anonymous mappings of the target.  Nothing is unmapped but
                two of them that lie exactly as ours did.
        """
        left, self._leftover = self._leftover, NO_AREA
        there = [(start, end, rights) for start, end, rights in areas if start in left]
        match there:
            case [(start, middle, "rw-p"), (also_middle, end, "r-xp")] if (
                    (start, end, middle) == (left.start, left.start + left.length, also_middle)):
                self._unmap(tid, original, [left])
                return True
        return False

    def _unmap(self, tid: int, original: Registers, areas: Sequence[Area]) -> None:
        if areas:
            self.plain(tid, original, [Call(NR.MUNMAP, (area.start, area.length)) for area in areas[:CALLS_MAX]])
            self.memory.write(*self._room.claim())

    def begin_snapshot(self, tid: int, original: Registers, *, child_of_target: bool = False) -> Family:
        """Begin to make a copy-on-write child of the target that stays stopped, is our tracee, and dies with us.

        All its signals are blocked.  An area that was mapped is unmapped before.

        Args:
            tid: a stopped tracee with TRACESYSGOOD.
            original: its registers.
            child_of_target: make it a child of the target itself, invisible to its wait(2) but for __WALL: for targets
                below a subreaper.  Once dead it must be reaped by a wait4(pid, NULL, __WALL) in the target; if we die
                before, it stays there as a zombie.

        Returns:
            For ``end_snapshot``; or to be killed.

        Raises:
            InjectionInterrupted: try again after letting go.
            FeatureMissing: a stub cannot bring this thread home.
            TraceeGone: the target ended.
        """
        middle_flags = _CLONE_VM | _CLONE_VFORK | _CLONE_FS | _CLONE_FILES
        child_flags = _CLONE_FS | _CLONE_FILES | (_CLONE_PARENT if child_of_target else 0)
        area, self._area = self._area, NO_AREA
        self._send(tid, original, _SNAPSHOT, _SNAPSHOT_TASK.pack(middle_flags, child_flags, area.start,
                                                                      area.length))
        family = Family(tid, original)
        with family.unless_failed():
            go_through(tid, original, 4 if area.length else 2)  # to the entry of clone
            family.begin()
        return family

    def end_snapshot(self, family: Family) -> int:
        """Wait until the child is made, bring the thread home, and return the pid of the child.

        Raises:
            NativeError: the kernel makes no child: EAGAIN, ENOMEM.
            InjectionInterrupted, TraceeGone: as ``begin_snapshot``.
        """
        with family.unless_failed():
            family.end()
            self.memory.write(*self._room.claim())
        if not family.child:
            raise NativeError(f"the target cannot be forked: {os.strerror(family.errno)}", operation="clone",
                              errno=family.errno, tid=family.target)
        return family.child

    def _send(self, tid: int, original: Registers, code: bytes, task: bytes) -> int:
        """Write a stub into the slot that was used longest ago, and send the thread to its first system call.

        Returns:
            Where its task is.
        """
        _check_can_carry(tid, original)
        if due := _signal_due(tid):
            raise interrupted(tid, due)
        slot = self._next_slot()
        self._write(slot, code + _home_data(original, tracee.get_signal_mask(tid)) + task)
        there = original.copy()
        there.rip, there.orig_rax = slot, -1
        tracee.set_registers(tid, there)
        tracee.set_signal_mask(tid, _WORD)  # not before: from here on it is the stub that puts the mask back
        go_through(tid, original, 1)
        return slot + len(code) + _HOME_BYTES

    def _next_slot(self) -> int:
        """Return the slot that was used longest ago."""
        oldest = self._generations.index(min(self._generations))
        self._generations[oldest] = max(self._generations) + 1 & _WORD
        return self._slots[oldest]

    def _write(self, slot: int, content: bytes, *more: tuple[int, bytes]) -> None:
        """Write a stub, and that its slot was used last; and more before."""
        generation = _GENERATION.pack(max(self._generations))
        self.memory.write_parts([*more, (slot, content.ljust(_SLOT_BYTES - _GENERATION.size, b"\0") + generation)])


def _check_can_carry(tid: int, registers: Registers) -> None:
    if not lib.crd_stub_carries(registers.to_bytes()):
        raise FeatureMissing(f"no stub can bring thread {tid} home: 32-bit code, or an odd flag", tid=tid)


def _signal_due(tid: int) -> int:
    """Return the signal of a signal-delivery-stop, 0 if the thread is in another stop."""
    number, _errno, code = struct.unpack_from("<3i", tracee.get_siginfo(tid))
    at_syscall = number == signal.SIGTRAP and code == signal.SIGTRAP | 0x80
    return 0 if code >> 8 == tracee.EVENT_STOP or at_syscall else int(number)


def _home_data(original: Registers, signal_mask: int) -> bytes:
    home = ffi.new("unsigned char[]", _HOME_BYTES)
    lib.crd_stub_home(original.to_bytes(), signal_mask, home)
    return bytes(home)
