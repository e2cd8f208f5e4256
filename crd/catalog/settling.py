"""Rows beside objects: what is there of each image, in time and memory that many images without fault do not cost."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crd.ids import Crid

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

_COUNTING = frozenset({"ok", "damaged"})


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

    def add(self, crid: Crid, state: str, whole: Mapping[Crid, int], left: Collection[Crid] | None, *,
            is_there: bool) -> None:
        """Take in a row."""
        if state == "storing":
            if left is not None and crid not in left:
                return  # it is under way
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


def compare(parts: Iterator[Sequence[tuple[int, str]]], objects: Sequence[int],
            whole: Mapping[Crid, int], left: Collection[Crid] | None) -> Differences:
    """Compare rows, as crid and state, with objects, as crids, both in ascending order.

    Args:
        parts: the rows of a host, many at a time.
        objects: of its archive.
        whole: as of ``Images.settle``.
        left: as of ``Images.settle``.
    """
    found, reached = Differences(), 0
    for part in parts:
        end = bisect_right(objects, part[-1][0], reached)
        beside = objects[reached:end]
        reached = end
        if [crid for crid, _ in part] == beside and _COUNTING.issuperset({state for _, state in part}):
            continue  # as nearly always
        there = {*beside}
        for crid, state in part:
            found.add(Crid(crid), state, whole, left, is_there=crid in there)
        found.unknown += map(Crid, there.difference(crid for crid, _ in part))
    found.unknown = sorted([*found.unknown, *map(Crid, objects[reached:])])
    return found
