"""Looks at what a process has written: each finds what has changed since the one before."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from crd.engine.userspace.mem.runs import common, joined, total, without
from crd.native import tracking

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Self

    from crd.engine.userspace.mem.runs import Run
    from crd.native.pagemap import FoundRuns, PageMap

_TABLE_BYTES = 2 << 20
"""What a page table spans: pages of it that vanish with it leave no note."""


@dataclass(frozen=True, slots=True)
class Present:
    """What is in some areas.

    Attributes:
        pages: ascending runs of those that hold something.
        guards: ascending runs of guard pages.
        tables: what the page tables of both span, in ascending runs.
    """

    pages: list[Run] = field(default_factory=list)
    guards: list[Run] = field(default_factory=list)
    tables: list[Run] = field(default_factory=list)

    @classmethod
    def of(cls, pages: Iterable[Run], guards: Iterable[Run]) -> Self:
        """Note pages and guard pages, given in any order."""
        one, other = joined(pages), joined(guards)
        return cls(one, other, joined((start & -_TABLE_BYTES, -(-(start + length) // _TABLE_BYTES) * _TABLE_BYTES
                                       - (start & -_TABLE_BYTES)) for start, length in chain(one, other)))

    @classmethod
    def now(cls, pagemap: PageMap, areas: Sequence[Run]) -> Self:
        """Look what is there; raises as ``PageMap.own_and_guard_pages``."""
        return cls.of(*pagemap.own_and_guard_pages(areas))

    def after(self, changed: Sequence[Run], found: Present) -> Present:
        """Return what is there after a change, by what was found where something has changed."""
        return Present.of(chain(without(self.pages, changed), found.pages),
                          chain(without(self.guards, changed), found.guards))

    def one_of_each_table(self) -> array[int]:
        """Return the address of one page of each page table."""
        found = array("Q")
        following = 0
        for start, length in joined(chain(self.pages, self.guards)):
            for table in range(max(start // _TABLE_BYTES, following), (start + length - 1) // _TABLE_BYTES + 1):
                found.append(max(start, table * _TABLE_BYTES))
                following = table + 1
        return found


@dataclass(frozen=True, slots=True)
class Look:
    """What some areas hold that they did not hold at the last look.

    Attributes:
        areas: which were looked at, in ascending order.
        found: pages that were written since, or given back.
        unknown: those of the areas of which nothing is noted, or not of all.
    """

    areas: list[Run]
    found: tuple[FoundRuns, FoundRuns]
    unknown: list[Run]

    @classmethod
    def at(cls, pagemap: PageMap, areas: list[Run], there: Present) -> Self:
        """Look at areas, knowing what was there at the last look or since.

        Raises:
            NativeError: see ``tracking.find_changed``.
        """
        dense, unknown = tracking.find_changed(pagemap, common(areas, there.tables), dense=True)
        sparse, also_unknown = tracking.find_changed(pagemap, without(areas, there.tables), dense=False)
        parts = joined(chain(unknown, also_unknown))
        return cls(areas, (dense, sparse), [area for area in areas if parts and common([area], parts)])

    @property
    def bytes(self) -> int:
        """How much was written, at most."""
        return sum(found.bytes for found in self.found)

    def changed(self) -> list[Run]:
        """Return what was written since or given back, in ascending runs."""
        return joined(chain.from_iterable(found.runs() for found in self.found))


@dataclass(frozen=True, slots=True)
class LastLook:
    """What was found in the stop.

    Attributes:
        noted: of what the notes cover.
        others: all of the rest.
        there: what was there at the look before.
        gone: one page of each page table of these that is there no longer.
    """

    noted: Look
    others: Present
    there: Present
    gone: list[int]

    @property
    def written_bytes(self) -> int:
        """How much has to be read now or later, at most."""
        return self.noted.bytes + total(self.others.pages)

    def written(self, pagemap: PageMap) -> Present:
        """Return the pages that have to be, and the guard pages that are new or of the rest.

        Args:
            pagemap: of the process in the stop, or of its snapshot child.

        Raises:
            NativeError, TargetGone: see ``PageMap.own_and_guard_pages``.
        """
        return self.others.after([], Present.now(pagemap, self.noted.changed()))

    def kept(self) -> Present:
        """Return what is as it was."""
        vanished = ((page & -_TABLE_BYTES, _TABLE_BYTES) for page in self.gone)
        lost = joined(chain(self.noted.changed(), self.noted.unknown, vanished))
        watched = joined(self.noted.areas)
        return Present.of(*(without(common(runs, watched), lost) for runs in (self.there.pages, self.there.guards)))
