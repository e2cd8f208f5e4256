"""The process that becomes the restarted task, from its birth to the moment it is let go."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from crd.engine.userspace import numbers
from crd.engine.userspace.processor import COMPONENTS, enabled_components
from crd.engine.userspace.snapshot import gap
from crd.errors import NativeError, PidInUse, RestartError, RestartUnsupported
from crd.native import tracee
from crd.native.batch import Batch, find_syscall, map_scratch, remote_syscall
from crd.native.memory import Memory
from crd.native.syscall import NR
from crd.native.vessel import spawn_vessel
from crd.target import procfs

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from crd.engine.userspace.plan import Plan

_OPTIONS = tracee.OPTION_EXITKILL | tracee.OPTION_TRACESYSGOOD
_MREMAP_MAYMOVE_FIXED = 3
_ALL_FDS = 0xFFFF_FFFF


class Vessel:
    """A stopped tracee that dies with us.  A context manager: unless it was released, it is killed.

    Attributes:
        pid: its number.
        memory: its memory, open.
        batch: to make system calls in it.
    """

    def __init__(self, plan: Plan, pid: int) -> None:
        """Start it under a number (0: any), with nothing mapped but vdso and vvar, at the places the image has them.

        Raises:
            PidInUse, FeatureMissing: see ``spawn_vessel``.
            RestartUnsupported: this processor has other state than the image's.
        """
        try:
            self.pid = spawn_vessel(pid)
        except PidInUse:
            numbers.await_free([pid])  # says who has it
            raise
        self.threads = [self.pid]
        self._released = False
        try:
            tracee.seize(self.pid, _OPTIONS)
            tracee.interrupt(self.pid)
            tracee.wait(self.pid)
            self._check_processor(plan)
            self.memory = Memory(self.pid)
            self._make_room(plan)
        except BaseException:
            self._kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.memory.close()
        if not self._released:
            self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        for tid in reversed(self.threads):
            with suppress(NativeError):
                tracee.wait_end(tid)

    def _check_processor(self, plan: Plan) -> None:
        """The state of a processor must be put back as it is laid out here, and by the same components."""
        ours = tracee.get_xstate(self.pid)
        differ = plan.profile.xcr0 ^ enabled_components(ours)
        if differ:
            names = ", ".join(COMPONENTS.get(bit, f"component {bit}") for bit in range(64) if differ >> bit & 1)
            raise RestartUnsupported(f"the image was taken on a processor that differs in {names}",
                                     hint="Restart it on a processor with the same features.")
        if {len(thread.xstate) for thread in plan.threads} != {len(ours)}:
            raise RestartUnsupported(f"the image has {plan.arch.xstate_bytes} B of processor state, not {len(ours)}",
                                     hint="Restart it on a processor of the same make.")

    def _make_room(self, plan: Plan) -> None:
        """Unmap all but vdso and vvar, and move these as one unit to where the image has them."""
        areas = [entry for entry in procfs.maps(self.pid) if entry.path != "[vsyscall]"]
        kept = [entry for entry in areas if entry.path.startswith(("[vvar", "[vdso]"))]
        vdso = next(entry for entry in kept if entry.path == "[vdso]")
        target = plan.memory.vvar_start or plan.memory.vdso_start
        length = plan.memory.vvar_bytes + plan.memory.vdso_bytes
        self._taken = [(entry.start, entry.end) for entry in areas] + [(vma.start, vma.end) for vma in plan.vmas]
        self._taken.append((target, target + length))
        self._scratch = self.reserve(Batch.SCRATCH_BYTES)
        self._vdso = plan.memory.vdso_start, plan.memory.vdso_bytes
        aside = self.reserve(length)
        syscall_at = find_syscall(self.memory, vdso.start, vdso.end - vdso.start)
        batch = self.batch = map_scratch(self.memory, self.pid, self._scratch, syscall_at)
        batch.call(NR.CLOSE_RANGE, 0, _ALL_FDS, 0)
        for entry in areas:
            if entry not in kept:
                batch.call(NR.MUNMAP, entry.start, entry.end - entry.start)
        start = kept[0].start
        for place, base in ((aside, start), (target, aside)):
            for entry in kept:
                size = entry.end - entry.start
                batch.call(NR.MREMAP, base + entry.start - start, size, size, _MREMAP_MAYMOVE_FIXED,
                           place + entry.start - start, what=f"moving {entry.path}")
        batch.run(self.pid)

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
        at = find_syscall(self.memory, *self._vdso)
        remote_syscall(self.pid, at, NR.MUNMAP, self._scratch, Batch.SCRATCH_BYTES)

    def release(self, *, stopped: bool) -> None:
        """Let all threads go, the leader last; from here on the task is on its own.

        Args:
            stopped: as after SIGSTOP.
        """
        self._released = True
        if stopped:
            os.kill(self.pid, signal.SIGSTOP)
        for tid in reversed(self.threads):
            tracee.detach(tid)
