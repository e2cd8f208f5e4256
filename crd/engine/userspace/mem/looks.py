"""Looks at what a process has written: each finds what has changed since the one before."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from crd.engine.userspace.mem.runs import common, joined, total, without
from crd.native import tracking

if TYPE_CHECKING:
    from typing import Self

    from crd.engine.userspace.mem.runs import Run
    from crd.native.pagemap import FoundRuns, PageMap

_TABLE_BYTES = 2 << 20
"""What a page table spans: pages of it that vanish with it leave no note."""


@dataclass(frozen=True, slots=True)
class Present:
    """Pages that hold something, and the page tables that they are in.

    Attributes:
        pages: ascending runs.
        tables: what the page tables span, in ascending runs.
    """

    pages: list[Run] = field(default_factory=list)
    tables: list[Run] = field(default_factory=list)

    @classmethod
    def of(cls, pages: list[Run]) -> Self:
        """Note pages, in ascending runs."""
        return cls(pages, joined((start & -_TABLE_BYTES, -(-(start + length) // _TABLE_BYTES) * _TABLE_BYTES
                                  - (start & -_TABLE_BYTES)) for start, length in pages))

    def one_of_each_table(self) -> array[int]:
        """Return the address of one page of each page table."""
        found = array("Q")
        following = 0
        for start, length in self.pages:
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
        others: all pages of the rest.
        there: what was there at the look before.
        gone: one page of each page table of these that is there no longer.
    """

    noted: Look
    others: list[Run]
    there: Present
    gone: list[int]

    @property
    def written_bytes(self) -> int:
        """How much has to be read now or later, at most."""
        return self.noted.bytes + total(self.others)

    def written(self, pagemap: PageMap) -> list[Run]:
        """Return the pages that have to be.

        Args:
            pagemap: of the process in the stop, or of its snapshot child.

        Raises:
            NativeError, TargetGone: see ``PageMap.own_pages``.
        """
        return joined(chain(pagemap.own_pages(self.noted.changed()), self.others))

    def kept(self) -> list[Run]:
        """Return the pages that are as they were."""
        vanished = ((page & -_TABLE_BYTES, _TABLE_BYTES) for page in self.gone)
        lost = joined(chain(self.noted.changed(), self.noted.unknown, vanished))
        return without(common(self.there.pages, joined(self.noted.areas)), lost)
