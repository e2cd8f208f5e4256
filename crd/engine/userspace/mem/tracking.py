"""What a process has written since its last image: found before the stop as far as it can be, and the rest in it.

The kernel notes each page that is written (``crd.native.tracking``).  Before the stop the pages that were written are
copied while the process runs on, round by round: what is written again meanwhile is found by the next round, or in the
stop.  Whatever the notes do not cover counts as written: what is not anonymous memory, and what was mapped since.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from crd.engine.userspace.mem import pages
from crd.engine.userspace.mem.layout import is_kernel_area, kind
from crd.engine.userspace.mem.runs import joined, total
from crd.errors import NativeError
from crd.image.profile import VMA_ANONYMOUS
from crd.native import tracking
from crd.native.memory import Memory
from crd.native.pagemap import PageMap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.engine.userspace.mem.runs import Run
    from crd.native.tracking import Found
    from crd.target.procfs import MapEntry

_ROUND_BYTES_MAX = 64 << 20
"""More than that is not copied before the stop: a snapshot is quicker to make."""
_ROUND_BYTES_FEW = 1 << 20
"""No further round is worth while."""
_ROUNDS_MAX = 4
_COPY_COSTS = 16
"""Copying a page takes that many times as long as making it part of a snapshot."""
_LITTLE_BYTES = 2 << 20
_STACK = "[stack]"


@dataclass(frozen=True, slots=True)
class Look:
    """What was found in the stop.

    Attributes:
        noted: of what the notes cover.
        others: all pages of the rest.
    """

    noted: Found
    others: Found

    def written_bytes(self) -> int:
        """Return how much has to be read now or later."""
        return self.noted.written_bytes() + self.others.written_bytes()

    def guards(self) -> list[Run]:
        """Return the guard regions."""
        return joined(chain(self.noted.guards, self.others.guards))

    def written(self) -> list[Run]:
        """Return the pages that have to be."""
        return joined(chain(self.noted.written(), self.others.written()))


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
    _wiped: set[int] = field(default_factory=set)
    last: Look | None = None

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
        areas = [area for area in self._areas(entries) if area[1]]
        with PageMap(self.pid) as pagemap, Memory(self.pid, writable=False) as memory:
            found = tracking.find(pagemap, areas, noted=True)
            new = [area for area in found.unknown if tracking.watch(self.userfaultfd, area)]
            fresh = tracking.find(pagemap, new, noted=True)
            if self.since:
                self.written.append(joined(chain(found.changed(), fresh.changed(), fresh.others())))
                self._copy_in_rounds(pagemap, memory, areas, joined(chain(
                    found.written(), fresh.written(), fresh.others())))

    def _copy_in_rounds(self, pagemap: PageMap, memory: Memory, areas: Sequence[Run], runs: list[Run]) -> None:
        for _ in range(_ROUNDS_MAX):
            size = total(runs)
            if size > _ROUND_BYTES_MAX:
                self.unread = True
                return
            try:
                self.copies.append((runs, pages.copy(memory, runs, just_written=True)))
            except NativeError:  # it was unmapped meanwhile
                self.unread = True
                return
            if size <= _ROUND_BYTES_FEW:
                return
            found = tracking.find(pagemap, areas, noted=True)
            self.written.append(joined(found.changed()))
            runs = joined(found.written())
            if total(runs) > size // 2:  # it is written as fast as we copy
                self.unread = True
                return
        self.unread = True

    def look(self, entries: Sequence[MapEntry]) -> Look:
        """Look for the last time, while the process is stopped, and begin the notes of the next image.

        If nothing comes of it, the process is let go and stopped again, and this is called once more.

        Raises:
            NativeError: the notes cannot be read.
        """
        with PageMap(self.pid) as pagemap:
            if self.last and self.since:
                self.written.append(joined(self.last.noted.changed()))
                self.unread = True
            noted = tracking.find(pagemap, self._areas(entries), noted=True)
            rest = [(entry.start, entry.end - entry.start) for entry in entries
                    if not entry.shared and not is_kernel_area(entry) and not self._is_tracked(entry)]
            others = tracking.find(pagemap, [*rest, *noted.unknown] if self.since else [], noted=False)
            self.last = Look(noted, others)
            return self.last

    def is_little(self) -> bool:
        """Whether what is left to read is copied in less time than a snapshot child is made."""
        assert self.last  # noqa: S101
        return self.since and not self.unread and self.last.written_bytes() <= max(
            _LITTLE_BYTES, self.resident_bytes // _COPY_COSTS)

    def is_useful(self) -> bool:
        """Whether the notes spared us the reading of a good part of the memory, or may do so the next time."""
        return self.last is not None and (
            not self.since or sum(map(total, self.written)) + self.last.noted.written_bytes()
            <= max(_LITTLE_BYTES, self.resident_bytes // 2))

    def _areas(self, entries: Sequence[MapEntry]) -> list[Run]:
        return [(entry.start, entry.end - entry.start) for entry in entries if self._is_tracked(entry)]

    def _is_tracked(self, entry: MapEntry) -> bool:
        return (kind(entry) == VMA_ANONYMOUS and not entry.shared and not is_kernel_area(entry)
                and entry.path != _STACK and entry.start not in self._wiped)
