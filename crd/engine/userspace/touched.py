"""Pages of ours that a stop is the first to write to since we were forked: copied by the kernel before it, not in it.

A worker has the memory of its nursery, copy-on-write, with a reference count in every object.  What one worker had to
copy in its stop the next ones copy before theirs: it leaves word of that in memory which they all share.
"""

from __future__ import annotations

import mmap
import os
from array import array
from itertools import chain, takewhile

from crd.engine.userspace.mem.runs import joined
from crd.image.profile import PAGE_BYTES
from crd.native.memory import own
from crd.target import procfs

_RUNS_MAX = 4095
_LESSONS = 4
"""Workers that leave word, which takes several milliseconds; what they have not met is not worth while."""
_EXCLUSIVE = 1 << 56
"""Of an entry of the page map: nobody else has the page (admin-guide/mm/pagemap of the kernel)."""


class Touched:
    """Word of such pages, shared by all processes that are forked from the one that made this."""

    def __init__(self) -> None:
        """Leave none yet; there ever is only of memory that there is by now."""
        self._board = memoryview(mmap.mmap(-1, (1 + _RUNS_MAX) * 16)).cast("Q")  # runs; before: lessons that are left
        self._board[0] = _LESSONS
        self._areas = [(entry.start, entry.end - entry.start) for entry in procfs.maps(os.getpid())
                       if entry.permissions.startswith("rw-p")]
        self._before: set[int] | None = None

    def copy(self) -> None:
        """Copy what others have left word of.  A stop is about to begin."""
        own(self._board[2:])
        self._before = self._exclusive() if self._board[0] else None

    def note(self) -> None:
        """Leave word of what had to be copied in the stop, if there is something to learn yet.  It is over."""
        if self._before is not None:
            known = takewhile(any, zip(self._board[2::2], self._board[3::2], strict=True))
            new = ((page, PAGE_BYTES) for page in self._exclusive() - self._before)
            runs = array("Q", chain.from_iterable(joined(chain(known, new))[-_RUNS_MAX:]))
            self._board[2:2 + len(runs)] = memoryview(runs)
            self._board[0] = max(0, self._board[0] - 1)

    def _exclusive(self) -> set[int]:
        found: set[int] = set()
        fd = os.open(procfs.path("self", "pagemap"), os.O_RDONLY | os.O_CLOEXEC)
        try:
            for start, length in self._areas:
                entries = array("Q", os.pread(fd, length // PAGE_BYTES * 8, start // PAGE_BYTES * 8))
                found.update(start + index * PAGE_BYTES for index, entry in enumerate(entries) if entry & _EXCLUSIVE)
        finally:
            os.close(fd)
        return found

