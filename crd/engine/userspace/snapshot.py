"""The snapshot child: a copy-on-write copy of the target that is asked and read while the target runs on.

To make one takes the longest part of most stops.  It is another task that makes it, on another processor if there is
one, while we look at the target, which goes on to be at rest.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from crd.engine.userspace.questions import SnapshotAsker
from crd.errors import NativeError
from crd.native import tracee
from crd.native.batch import Batch, find_syscall, map_scratch
from crd.native.memory import Memory
from crd.native.syscall import NR

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from crd.engine.userspace.freeze import Frozen
    from crd.engine.userspace.mem.areas import Areas
    from crd.native.inject import Injector

_ADDRESS_END = 0x7FFF_FFFF_F000
_LOWEST = 1 << 20
STUB_BYTES_MAX = 8192
"""Stubs lie that far from the end of their mapping (``crd.native.room``)."""
_ALL_FDS, _CLOSE_RANGE_UNSHARE = 0xFFFF_FFFF, 2


class Snapshot:
    """The child: ``pid``, ``memory``, both once it is made."""

    pid: int
    memory: Memory

    def __init__(self, frozen: Frozen, stubs: Injector, entries: Areas, *, confined: bool) -> None:
        """Begin to make it.

        Args:
            frozen: the target.
            stubs: for system calls in it.
            entries: its areas.
            confined: it has filters of seccomp(2), which are to keep the child from nothing.

        Raises:
            InjectionInterrupted: a signal came; let go and try again.
        """
        self.entries = entries
        self._confined = confined
        self._stubs = stubs
        self._family = stubs.begin_snapshot(frozen.pid, frozen.registers)

    def wait_made(self) -> None:
        """Wait until it is made.

        Raises:
            NativeError: the kernel makes no child of the target (EAGAIN, ENOMEM).
            InjectionInterrupted: a signal came; let go and try again.
        """
        self.pid = self._stubs.end_snapshot(self._family)
        self.memory = Memory(self.pid)
        if self._confined:
            tracee.set_options(self.pid, tracee.OPTION_EXITKILL | tracee.OPTION_TRACESYSGOOD
                               | tracee.OPTION_SUSPEND_SECCOMP)

    def detach_itself(self) -> None:
        """Make it a process of ours: ``batch`` makes system calls in it, ``asker`` asks it; needs the target no longer.

        It gets an area of its own for that, where the target has none.  It lets go of what it shares with the target:
        of the file table, since locks and pipes are to end with the target, and of session and process group, whose
        number is then free for a restart.
        """
        at = self._syscall_instruction()
        scratch = gap([(entry.start, entry.end) for entry in self.entries], Batch.SCRATCH_BYTES)
        self.batch = map_scratch(self.memory, self.pid, scratch, at)
        self.batch.call(NR.CLOSE_RANGE, 0, _ALL_FDS, _CLOSE_RANGE_UNSHARE)
        self.batch.call(NR.SETSID)
        self.batch.run(self.pid)
        self.asker = SnapshotAsker(self.batch, self.pid)

    def _syscall_instruction(self) -> int:
        """Return the address of one: in the vdso, or in the stub that made the child where there is none."""
        for entry in self.entries.stub_places:
            start = max(entry.start, entry.end - STUB_BYTES_MAX)
            with suppress(NativeError):
                return find_syscall(self.memory, start, entry.end - start)
        raise NativeError("the snapshot child has no code to make system calls with")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Kill the child, and wait until it is gone."""
        if hasattr(self, "memory"):
            self.memory.close()
        self._family.kill()


def gap(taken: Sequence[tuple[int, int]], length: int) -> int:
    """Return the lowest page address from which ``length`` bytes are free of all ranges.

    Raises:
        NativeError: there is no such gap.
    """
    at = _LOWEST
    for start, end in sorted(taken):
        if start - at >= length:
            break
        at = max(at, end)
    if at + length > _ADDRESS_END:
        raise NativeError("the address space has no gap left")
    return at
