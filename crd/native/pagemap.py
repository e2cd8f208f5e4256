"""Which pages of a process are there: PAGEMAP_SCAN (6.7), or the entries of /proc/PID/pagemap on older kernels."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from crd.errors import NativeError, TargetGone
from crd.native.check import call
from crd.native.ffi import ffi, lib
from crd.native.memory import PAGE_BYTES

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from crd.native.memory import Run

_CAPACITY_FIRST, _CAPACITY = 1024, 16384
"""Of lists of runs: what is larger is memory that the kernel has to map."""
_ENTRY_BYTES = 8
_new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)


@dataclass(slots=True)
class FoundRuns:
    """Runs of pages, as the kernel has told them; told one by one only when there is time."""

    _chunks: list[Any] = field(default_factory=list)
    _memory: list[Any] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """How much they are."""
        return sum(chunk.bytes for chunk in self._chunks)

    def runs(self) -> list[Run]:
        """Return them in the order of the areas that were looked at."""
        return [(run.address, run.length) for chunk in self._chunks for run in chunk.runs[0:chunk.n]]

    def room(self) -> Any:
        """Make room for more of them."""
        capacity = _CAPACITY if self._chunks else _CAPACITY_FIRST
        memory = _new_uncleared("struct crd_run[]", capacity)
        chunk = ffi.new("struct crd_runs *", {"runs": memory, "capacity": capacity})
        self._memory.append(memory)
        self._chunks.append(chunk)
        return chunk


def look_at(areas: Sequence[Run], look: Callable[..., object]) -> None:
    """Look at areas until all were looked at: each look ends when there is no room for more."""
    wanted, area, address = ffi.new("struct crd_run[]", list(areas)), ffi.new("size_t *"), ffi.new("uint64_t *")
    while area[0] < len(areas):
        look(wanted, len(areas), area, address)


class PageMap:
    """/proc/PID/pagemap, open.  A context manager."""

    def __init__(self, pid: int) -> None:
        """Open it.

        Raises:
            TargetGone: there is no such process.
            NativeError: it may not be opened.
        """
        try:
            self.fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise TargetGone(f"process {pid} is gone", pid=pid) from error
        except OSError as error:
            raise NativeError(f"open the page map of process {pid}: {error.strerror}", operation="open pagemap",
                              errno=error.errno or 0, tid=pid) from error
        self._pid = pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        os.close(self.fd)

    def own_pages(self, areas: Sequence[Run]) -> list[Run]:
        """Return the pages of some areas that are the process's own; see ``own_and_guard_pages``."""
        return self.own_and_guard_pages(areas)[0]

    def own_and_guard_pages(self, areas: Sequence[Run]) -> tuple[list[Run], list[Run]]:
        """Return the pages of some areas that are the process's own, and those that are guard pages.

        The former are memory present or swapped out which is no page of a file and not the shared zero page: what a
        checkpoint must store of private memory.  Of guard pages (MADV_GUARD_INSTALL, 6.13) kernels before 6.15 tell
        only with CAP_SYS_ADMIN.

        Args:
            areas: in ascending order.

        Returns:
            Ascending runs of either.

        Raises:
            TargetGone: the process has ended, and its memory with it.
            NativeError: the kernel does not tell.
        """
        try:
            own, guards = self._find(areas, scan=True)
        except NativeError as error:
            if error.errno not in {errno.ENOTTY, errno.EINVAL}:
                raise
            own, guards = self._find(areas, scan=False)
        if not os.pread(self.fd, _ENTRY_BYTES, 0):
            raise TargetGone(f"process {self._pid} has ended", pid=self._pid)
        return own.runs(), guards.runs()

    def gone(self, pages: array[int]) -> list[int]:
        """Return those of some pages, given by their addresses, u64 each, that hold nothing now.

        Raises:
            NativeError: ESRCH if the process has ended.
        """
        gone = bytearray(len(pages))
        call(lib.crd_pages_gone, self._pid, self.fd, ffi.from_buffer("uint64_t[]", pages), len(pages),
             ffi.from_buffer(gone))
        return [] if 1 not in gone else [page for page, is_gone in zip(pages, gone, strict=True) if is_gone]

    def scan_once(self) -> None:
        """Use PAGEMAP_SCAN once; raises NativeError if the kernel has none."""
        self._find([(PAGE_BYTES, PAGE_BYTES)], scan=True)

    def _find(self, areas: Sequence[Run], *, scan: bool) -> tuple[FoundRuns, FoundRuns]:
        own, guards = FoundRuns(), FoundRuns()
        look_at(areas, lambda *where: call(lib.crd_pages_own, self.fd, scan, *where, own.room(), guards.room()))
        return own, guards
