"""What a process has written since its last image: found before the stop as far as it can be, and the rest in it.

The kernel notes each page that is written (``crd.native.tracking``).  Before the stop the pages that were written are
copied while the process runs on, round by round: what is written again meanwhile is found by the next round, or in the
stop.  Whatever the notes do not cover counts as written: what is not anonymous memory, and what was mapped since.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from crd.engine.userspace.mem import pages
from crd.engine.userspace.mem.layout import is_kernel_area, kind
from crd.engine.userspace.mem.looks import LastLook, Look, Present
from crd.engine.userspace.mem.runs import common, joined, total
from crd.engine.userspace.mem.shared import Reserve
from crd.errors import NativeError
from crd.image.profile import VMA_ANONYMOUS
from crd.native import tracking
from crd.native.memory import Memory
from crd.native.pagemap import PageMap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.engine.userspace.mem.runs import Run
    from crd.target.procfs import MapEntry

_ROUND_BYTES_MAX = 256 << 20
"""More than that is not copied before the stop: it would take as much of our memory."""
_ROUND_BYTES_FEW = 1 << 20
"""No further round is worth while."""
_ROUNDS_MAX = 4
_COPY_COSTS = 16
"""Copying a page takes that many times as long as making it part of a snapshot."""
_LITTLE_BYTES = 2 << 20
_STACK = "[stack]"


@dataclass(slots=True)
class Tracking:
    """The notes of a process, from shortly before the stop on.

    Attributes:
        userfaultfd: by which they are taken.
        resident_bytes: of anonymous memory, about.
        since: they go back to the image that the reader of the next one has.
        written: what earlier looks have found, in their order; each look begins the notes anew.
        copies: of what was written, as far as it was copied while the process ran.
        unread: some of it was not.
        last: the look in the stop.
    """

    pid: int
    userfaultfd: int
    resident_bytes: int
    since: bool
    written: list[list[Run]] = field(default_factory=list)
    copies: list[tuple[list[Run], memoryview]] = field(default_factory=list)
    unread: bool = False
    last: LastLook | None = None
    _wiped: set[int] = field(default_factory=set)
    _entries: Sequence[MapEntry] = ()
    _parts: tuple[list[Run], list[Run]] = ([], [])
    _there: Present = field(default_factory=Present)  # at the last look before the stop
    _pages_of_tables: array[int] = field(default_factory=lambda: array("Q"))

    def prepare(self, entries: Sequence[MapEntry], wiped: set[int]) -> None:
        """Watch what is new, and copy what was written, while the process runs.

        Args:
            entries: the areas of the process.
            wiped: starts of those that a snapshot child has not, or sees empty.

        Raises:
            NativeError: the notes cannot be read.
            TargetGone: the process has ended.
        """
        self._wiped = wiped
        areas = self._parted(entries)[0]
        with PageMap(self.pid) as pagemap, Memory(self.pid, writable=False) as memory:
            self._there = Present.now(pagemap, areas)
            look = Look.at(pagemap, areas, self._there)
            fresh = Look.at(pagemap, [area for area in look.unknown if tracking.watch(self.userfaultfd, area)],
                            self._there)
            if self.since:
                self._there = Present.now(pagemap, areas)
                self.written.append(joined(chain(look.changed(), fresh.changed())))
                self._copy_in_rounds(pagemap, memory, areas)
                self._pages_of_tables = self._there.one_of_each_table()

    def _copy_in_rounds(self, pagemap: PageMap, memory: Memory, areas: list[Run]) -> None:
        runs = common(self._there.pages, self.written[-1])
        for _ in range(_ROUNDS_MAX):
            size = total(runs)
            if size > _ROUND_BYTES_MAX:
                break
            try:
                self.copies.append((runs, pages.copy(memory, runs, Reserve(), just_written=True)))
            except NativeError:  # it was unmapped meanwhile
                break
            if size <= _ROUND_BYTES_FEW:
                return
            changed = Look.at(pagemap, areas, self._there).changed()
            found = Present.now(pagemap, changed)
            runs = found.pages
            self.written.append(changed)
            self._there = self._there.after(changed, found)
            if total(runs) > size // 2:  # it is written as fast as we copy
                break
        self.unread = True

    @property
    def copied_bytes(self) -> int:
        """How much was copied while the process ran, some pages more than once."""
        return sum(content.nbytes for _, content in self.copies)

    @property
    def rest_bytes(self) -> int:
        """How much may be left to be copied in the stop, as a rule; 0 if that is not to be expected."""
        return _LITTLE_BYTES if self.copies and not self.unread else 0

    def look(self, entries: Sequence[MapEntry]) -> None:
        """Look for the last time, while the process is stopped, and begin the notes of the next image.

        If nothing comes of it, the process is let go and stopped again, and this is called once more.

        Raises:
            NativeError: the notes cannot be read.
            TargetGone: the process has ended.
        """
        areas, rest = self._parted(entries)
        with PageMap(self.pid) as pagemap:
            if self.last and self.since:
                self.written.append(self.last.noted.changed())
                self.unread = True
                self._there, self._pages_of_tables = Present.now(pagemap, areas), array("Q")
            noted = Look.at(pagemap, areas, self._there)
            others = Present.now(pagemap, sorted([*rest, *noted.unknown])) if self.since else Present()
            self.last = LastLook(noted, others, self._there, pagemap.gone(self._pages_of_tables))

    def is_little(self) -> bool:
        """Whether what is left to read is copied in less time than a snapshot child is made."""
        assert self.last  # noqa: S101
        return self.since and not self.unread and self.last.written_bytes <= max(
            _LITTLE_BYTES, self.resident_bytes // _COPY_COSTS)

    def is_useful(self) -> bool:
        """Whether the notes spared us the reading of a good part of the memory, or may do so the next time."""
        return self.last is not None and (
            not self.since or sum(map(total, self.written)) + self.last.noted.bytes
            <= max(_LITTLE_BYTES, self.resident_bytes // 2))

    def _parted(self, entries: Sequence[MapEntry]) -> tuple[list[Run], list[Run]]:
        """Return which private areas are watched, and which are not: in the stop mostly what it was before."""
        if self._entries is not entries:
            self._entries, self._parts = entries, ([], [])
            for entry in entries:
                if not entry.shared and not is_kernel_area(entry):
                    self._parts[not self._is_tracked(entry)].append((entry.start, entry.end - entry.start))
        return self._parts

    def _is_tracked(self, entry: MapEntry) -> bool:
        return (kind(entry) == VMA_ANONYMOUS and not entry.is_file and entry.path != _STACK
                and entry.start not in self._wiped)
