"""The process that becomes a restarted task, from its birth to the moment it is let go."""

from __future__ import annotations

import os
import signal
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.engine.userspace.processor import COMPONENTS, enabled_components
from crd.engine.userspace.snapshot import gap
from crd.errors import NativeError, RestartError, RestartUnsupported, TraceeGone
from crd.native import tracee
from crd.native.batch import Batch, find_syscall, map_scratch, remote_syscall
from crd.native.memory import Memory
from crd.native.syscall import NR
from crd.native.vessel import spawn_vessel
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.engine.userspace.plan import Plan, TreePlan
    from crd.image.profile import Vma

_OPTIONS = tracee.OPTION_EXITKILL | tracee.OPTION_TRACESYSGOOD
_MREMAP_MAYMOVE_FIXED = 3
_ALL_FDS = 0xFFFF_FFFF
_CLONE_ARGS = struct.Struct("<11Q")
_CLONE_FS, _CLONE_FILES, CLONE_PTRACE, CLONE_PARENT = 0x200, 0x400, 0x2000, 0x8000
_ACTION = struct.Struct("<4Q")
_SET_BYTES = 8
_EXIT_GROUP, _WNOHANG, _WUNTRACED = 231, 1, 2
_WALL = 0x4000_0000


@dataclass(frozen=True, slots=True)
class Vdso:
    """Where vdso and the vvar areas before it lie, as one unit: address, bytes, and those of the vdso alone."""

    start: int
    length: int
    code_start: int
    code_length: int

    @classmethod
    def of(cls, plan: Plan) -> Vdso:
        """Return where the image has them."""
        memory = plan.memory
        return cls(memory.vvar_start or memory.vdso_start, memory.vvar_bytes + memory.vdso_bytes, memory.vdso_start,
                   memory.vdso_bytes)


class Grounds:
    """Addresses that no process of an image uses: for the scratch area of every vessel, and to move vdsos over.

    Attributes:
        taken: ranges that are used, in any process.
        scratch, aside: addresses.
    """

    def __init__(self, tree: TreePlan, inherited: Sequence[tuple[int, int]]) -> None:
        """Find some, free also of what a vessel has mapped when it begins."""
        units = [Vdso.of(plan) for plan in tree.processes]
        self.taken = [*inherited, *((vma.start, vma.end) for plan in tree.processes for vma in plan.vmas),
                      *((unit.start, unit.start + unit.length) for unit in units)]
        self.scratch = self._reserve(Batch.SCRATCH_BYTES)
        self.aside = self._reserve(max(unit.length for unit in units))

    def _reserve(self, length: int) -> int:
        start = gap(self.taken, length)
        self.taken.append((start, start + length))
        return start


class Vessel:
    """A stopped tracee that dies with us.

    Attributes:
        pid: its number.
        threads: its tids.
        memory: its memory, open.
        batch: to make system calls in it.
        areas: of an image that it has mapped, by itself or before its birth.
    """

    def __init__(self, pid: int, grounds: Grounds) -> None:
        """Hold a task that is our tracee; ``take_over`` or ``born`` make it fit for use."""
        self.pid = pid
        self.threads = [pid]
        self.memory = Memory(pid)
        self.batch = Batch(self.memory, grounds.scratch)
        self.areas: Sequence[Vma] = ()
        self._grounds = grounds
        self._taken = list(grounds.taken)
        self._vdso: Vdso

    def take_over(self) -> None:
        """Map the scratch area into a vessel that has just executed, and unmap all else but vvar and vdso.

        Its descriptors are closed, and it waits for its children.
        """
        areas = [entry for entry in procfs.maps(self.pid) if entry.path != "[vsyscall]"]
        kept = [entry for entry in areas if entry.path.startswith(("[vvar", "[vdso]"))]
        vdso = next(entry for entry in kept if entry.path == "[vdso]")
        self._vdso = Vdso(kept[0].start, vdso.end - kept[0].start, vdso.start, vdso.end - vdso.start)
        at = find_syscall(self.memory, vdso.start, vdso.end - vdso.start)
        self.batch = map_scratch(self.memory, self.pid, self._grounds.scratch, at)
        self.batch.call(NR.CLOSE_RANGE, 0, _ALL_FDS, 0)
        for entry in areas:
            if entry not in kept:
                self.batch.call(NR.MUNMAP, entry.start, entry.end - entry.start)
        default = self.batch.data(_ACTION.pack(0, 0, 0, 0))
        for number in range(1, signal.NSIG):
            if number not in {signal.SIGKILL, signal.SIGSTOP}:  # one may be ignored, which execve(2) keeps
                self.batch.call(NR.RT_SIGACTION, number, default, 0, _SET_BYTES)
        self.run()

    def settle(self, plan: Plan) -> None:
        """Move vvar and vdso to where the image has them."""
        now, then = self._vdso, Vdso.of(plan)
        if now != then:
            areas = [entry for entry in procfs.maps(self.pid) if entry.path.startswith(("[vvar", "[vdso]"))]
            for base, place in ((now.start, self._grounds.aside), (self._grounds.aside, then.start)):
                for entry in areas:
                    size, offset = entry.end - entry.start, entry.start - now.start
                    self.batch.call(NR.MREMAP, base + offset, size, size, _MREMAP_MAYMOVE_FIXED, place + offset,
                                    what=f"moving {entry.path}")
            self.run()
            self._vdso = then

    def bear(self, number: int, exit_signal: int, *, flags: int = 0) -> Vessel:
        """Have the vessel make a child that is like it, and stopped.

        Args:
            number: the pid of the child; 0: any.
            exit_signal: what its parent is sent at its end.
            flags: of clone(2), such as CLONE_PARENT: it is then a child of the vessel's parent, and has the exit
                signal of the vessel.

        Raises:
            RestartError: it cannot; ``errno`` says why.
        """
        wanted = self.batch.data(struct.pack("<i4x", number))
        args = self.batch.data(_CLONE_ARGS.pack(flags | CLONE_PTRACE, 0, 0, 0, exit_signal, 0, 0, 0,
                                                wanted if number else 0, int(bool(number)), 0))
        self.batch.call(NR.CLONE3, args, _CLONE_ARGS.size, what=f"making process {number}")
        pid = self.run()[-1]
        if tracee.wait(pid).ended:
            raise RestartError(f"process {pid} ended before it began")
        child = Vessel(pid, self._grounds)
        child._vdso = self._vdso
        child.areas = self.areas
        return child

    def end(self, code: int = 0) -> None:
        """Have it exit; unless its parent ignores that it is a zombie then."""
        self.batch.call(_EXIT_GROUP, code)
        with suppress(TraceeGone):
            self.batch.run(self.pid)
        self.memory.close()

    def end_by(self, number: int) -> None:
        """Have it killed by a signal."""
        if number != signal.SIGKILL:
            tracee.set_signal_mask(self.pid, 0)
        os.kill(self.pid, number)
        while number != signal.SIGKILL:
            tracee.cont(self.pid)
            stop = tracee.wait(self.pid)
            if stop.ended:
                break
            if stop.is_signal and stop.signal == number:
                tracee.cont(self.pid, number)
                break
        with suppress(NativeError):
            tracee.wait_end(self.pid)
        self.memory.close()

    def reap(self, pid: int) -> None:
        """Have it wait for a child that has ended."""
        self.batch.call(NR.WAIT4, pid, 0, _WALL, 0, what=f"waiting for {pid}")
        self.run()

    def reserve(self, length: int) -> int:
        """Return an address where ``length`` bytes are free, now and in the image, and will not be given out again."""
        start = gap(self._taken, length)
        self._taken.append((start, start + length))
        return start

    def run(self, tid: int = 0) -> list[int]:
        """Execute what is in the batch, in a thread (0: the leader).

        Raises:
            RestartError: a call failed.
        """
        try:
            return self.batch.run(tid or self.pid)
        except NativeError as error:
            raise RestartError(f"making the task: {error.message}", operation=error.operation,
                               errno=error.errno) from error

    def flush(self) -> None:
        """Execute what is in the batch if there is not much room left in it."""
        if not self.batch.has_room:
            self.run()

    def adopt(self, tid: int) -> None:
        """Take note of a new thread, which is our tracee and stops before its first instruction."""
        self.threads.append(tid)
        if tracee.wait(tid).ended:
            raise RestartError(f"thread {tid} ended before it began")

    def unmap_scratch(self) -> None:
        """Remove the last trace of us from the address space; no batch can be run after this."""
        at = find_syscall(self.memory, self._vdso.code_start, self._vdso.code_length)
        remote_syscall(self.pid, at, NR.MUNMAP, self._grounds.scratch, Batch.SCRATCH_BYTES)

    def stop(self, number: int) -> None:
        """Stop it as job control does, with all its registers set; its parent is told, it stays our tracee.

        Args:
            number: of the signal; SIGSTOP if the task would not stop at that one.
        """
        os.kill(self.pid, signal.SIGSTOP)
        for tid in self.threads:  # the leader takes the signal; the others then stop before anything else
            due = 0
            while True:
                tracee.cont(tid, due)
                stop = tracee.wait(tid)
                if stop.ended:
                    raise RestartError(f"thread {tid} was killed while it was made")
                if stop.is_group_stop:
                    break
                due = number if stop.is_signal and stop.signal == signal.SIGSTOP else 0

    def note_stop(self, child: Vessel) -> None:
        """Have it wait for the stop of a child, which is not reported to it again."""
        self.batch.call(NR.WAIT4, child.pid, 0, _WUNTRACED | _WNOHANG | _WALL, 0, what="waiting for a stop")
        self.run()

    def release(self) -> None:
        """Let all threads go, the leader last; from here on the task is on its own."""
        for tid in reversed(self.threads):
            tracee.detach(tid)

    def kill(self) -> None:
        """Send it to its end."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait_end(self) -> None:
        """Wait until it has ended, having been killed like its parent before it: then it is our child."""
        self.memory.close()
        for tid in reversed(self.threads):
            with suppress(NativeError):
                tracee.wait_end(tid)


def seize(pid: int, tree: TreePlan) -> None:
    """Begin to trace a vessel that has executed, and stop it.

    Raises:
        RestartUnsupported: this processor has other state than the image's.
    """
    tracee.seize(pid, _OPTIONS)
    tracee.interrupt(pid)
    tracee.wait(pid)
    _check_processor(pid, tree)


def check_processor(tree: TreePlan) -> None:
    """Make sure that this processor has the state of the image, by a vessel that ends at once.

    Raises:
        RestartUnsupported: it has other state.
    """
    pid = spawn_vessel()
    try:
        seize(pid, tree)
    finally:
        os.kill(pid, signal.SIGKILL)
        tracee.wait_end(pid)


def _check_processor(pid: int, tree: TreePlan) -> None:
    """The state of a processor must be put back as it is laid out here, and by the same components."""
    ours = tracee.get_xstate(pid)
    differ = tree.root.profile.xcr0 ^ enabled_components(ours)
    if differ:
        names = ", ".join(COMPONENTS.get(bit, f"component {bit}") for bit in range(64) if differ >> bit & 1)
        raise RestartUnsupported(f"the image was taken on a processor that differs in {names}",
                                 hint="Restart it on a processor with the same features.")
    if {len(thread.xstate) for thread in tree.threads} != {len(ours)}:
        raise RestartUnsupported(f"the image has {tree.root.arch.xstate_bytes} B of processor state, not {len(ours)}",
                                 hint="Restart it on a processor of the same make.")


def sharing_flags(plan: Plan) -> int:
    """Return the flags of clone(2) for what a process shares with its parent."""
    return (_CLONE_FILES if plan.sharing.files else 0) | (_CLONE_FS if plan.sharing.directories else 0)
