"""Rows beside objects: what is there of each image, in time and memory that many images without fault do not cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crd.ids import Crid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping


@dataclass(slots=True)
class Differences:
    """What rows and objects do not have in common.

    Attributes:
        kept: rows in state ``storing`` whose object is whole.
        dropped: rows in that state without one.
        surplus: forgotten rows with their object.
        buried: forgotten rows without.
        missing: rows of images whose object is not there.
        unknown: objects without a row that counts.
    """

    kept: list[Crid] = field(default_factory=list)
    dropped: list[Crid] = field(default_factory=list)
    surplus: list[Crid] = field(default_factory=list)
    buried: list[Crid] = field(default_factory=list)
    missing: list[Crid] = field(default_factory=list)
    unknown: list[Crid] = field(default_factory=list)

    def add(self, crid: Crid, state: str, whole: Mapping[Crid, int], *, is_there: bool) -> None:
        """Take in a row."""
        if state == "storing":
            if crid in whole:
                self.kept.append(crid)
            else:
                self.dropped.append(crid)
                if is_there:
                    self.unknown.append(crid)
        elif state == "forgotten":
            (self.surplus if is_there else self.buried).append(crid)
        elif not is_there:
            self.missing.append(crid)


async def compare(rows: AsyncIterator[tuple[int, str]], objects: Iterable[int],
                  whole: Mapping[Crid, int]) -> Differences:
    """Compare rows, as crid and state, with objects, as crids, both in ascending order.

    Args:
        rows: of a host.
        objects: of its archive.
        whole: as of ``Images.settle``.
    """
    found, rest = Differences(), iter(objects)
    next_object = next(rest, None)
    async for crid, state in rows:
        while next_object is not None and next_object < crid:
            found.unknown.append(Crid(next_object))
            next_object = next(rest, None)
        is_there = next_object == crid
        if is_there:
            next_object = next(rest, None)
        if not is_there or state not in {"ok", "damaged"}:
            found.add(Crid(crid), state, whole, is_there=is_there)
    if next_object is not None:
        found.unknown += [Crid(next_object), *map(Crid, rest)]
    return found
