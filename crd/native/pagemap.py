"""Which pages of a process are there: PAGEMAP_SCAN (6.7), or the entries of /proc/PID/pagemap on older kernels."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.errors import NativeError, TargetGone
from crd.native.check import call
from crd.native.ffi import ffi, lib
from crd.native.memory import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from crd.native.memory import Memory, Run

PAGE_IS_FILE = 1 << 2
PAGE_IS_PRESENT = 1 << 3
PAGE_IS_SWAPPED = 1 << 4
PAGE_IS_PFNZERO = 1 << 5

_REGIONS = 4096
_ENTRIES = 16384
_ENTRY_BYTES = 8
_LITTLE_BYTES = 2 << 20
_new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)
_ENTRY_PRESENT, _ENTRY_SWAPPED, _ENTRY_FILE, _ENTRY_GUARD = 1 << 63, 1 << 62, 1 << 61, 1 << 58


@dataclass(frozen=True, slots=True)
class PageRun:
    """Pages from byte address ``start`` up to ``end``."""

    start: int
    end: int


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

    def own_pages(self, start: int, end: int) -> list[PageRun]:
        """Return the pages between two addresses that are the process's own, in ascending runs.

        That is memory present or swapped out which is no page of a file and not the shared zero page: what a checkpoint
        must store of private memory.

        Raises:
            TargetGone: the process has ended, and its memory with it.
        """
        try:
            runs = self._scan(start, end, PAGE_IS_FILE | PAGE_IS_PFNZERO, PAGE_IS_FILE | PAGE_IS_PFNZERO)
        except NativeError as error:
            if error.errno not in {errno.ENOTTY, errno.EINVAL}:
                raise
            runs = self._read_entries(start, end)
        if not os.pread(self.fd, _ENTRY_BYTES, start // PAGE_BYTES * _ENTRY_BYTES):
            raise TargetGone(f"process {self._pid} has ended", pid=self._pid)
        return runs

    def copy_own(self, memory: Memory, areas: Sequence[Run]) -> tuple[list[Run], memoryview] | None:
        """Copy what ``own_pages`` finds in areas, if it is little; None if it is not, or has to be looked at closer.

        Returns:
            Runs, and their content packed one after the other.

        Raises:
            MemoryFault, TraceeGone: as ``Memory.read_runs``.
        """
        room = _new_uncleared("unsigned char[]", _LITTLE_BYTES)
        copy = ffi.new("struct crd_copy *", {"content": room, "max_bytes": _LITTLE_BYTES})
        try:
            call(lib.crd_pages_copy, self.fd, memory.fd, list(areas), len(areas), copy)
        except NativeError as error:
            if error.operation != "ioctl PAGEMAP_SCAN":
                raise
            return None
        if not copy.complete or not copy.n:  # none: it may have ended
            return None
        return [(run.address, run.length) for run in copy.runs[0:copy.n]], memoryview(ffi.buffer(room, copy.bytes))

    def scan_once(self) -> None:
        """Use PAGEMAP_SCAN once; raises NativeError if the kernel has none."""
        self._scan(PAGE_BYTES, 2 * PAGE_BYTES, 0, 0)

    def _scan(self, start: int, end: int, inverted: int, required: int) -> list[PageRun]:
        regions = ffi.new("struct crd_page_region[]", _REGIONS)
        walk_end, n = ffi.new("uint64_t *"), ffi.new("size_t *")
        runs: list[PageRun] = []
        while start < end:
            call(lib.crd_pagemap_scan, self.fd, start, end, inverted, required, PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                 PAGE_IS_PRESENT, regions, _REGIONS, walk_end, n)
            for region in regions[0:n[0]]:
                if region.categories & PAGE_IS_PRESENT:
                    _append(runs, region.start, region.end)
                else:  # swapped out, or a guard page: only the entries tell
                    for run in self._read_entries(region.start, region.end):
                        _append(runs, run.start, run.end)
            start = walk_end[0]
        return runs

    def _read_entries(self, start: int, end: int) -> list[PageRun]:
        runs: list[PageRun] = []
        for at in range(start, end, _ENTRIES * PAGE_BYTES):
            n = min(_ENTRIES, (end - at) // PAGE_BYTES)
            data = os.pread(self.fd, n * _ENTRY_BYTES, at // PAGE_BYTES * _ENTRY_BYTES)
            for index, (entry,) in enumerate(struct.iter_unpack("<Q", data)):
                if entry & (_ENTRY_PRESENT | _ENTRY_SWAPPED) and not entry & (_ENTRY_FILE | _ENTRY_GUARD):
                    _append(runs, at + index * PAGE_BYTES, at + (index + 1) * PAGE_BYTES)
        return runs


def _append(runs: list[PageRun], start: int, end: int) -> None:
    """Add a run, joined to the last one where they meet: PAGEMAP_SCAN reports some pages twice."""
    if runs and start <= runs[-1].end:
        runs[-1] = PageRun(runs[-1].start, max(end, runs[-1].end))
    else:
        runs.append(PageRun(start, end))
