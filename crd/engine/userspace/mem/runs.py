"""Sets of pages, as ascending runs (address, bytes) of which no two touch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Run = tuple[int, int]
"""Address and length in bytes."""


def joined(runs: Iterable[Run]) -> list[Run]:
    """Return the set that holds all of these runs, which may overlap and come in any order."""
    found: list[Run] = []
    for start, length in sorted(runs):
        if found and start <= (end := found[-1][0] + found[-1][1]):
            found[-1] = (found[-1][0], max(end, start + length) - found[-1][0])
        else:
            found.append((start, length))
    return found


def common(one: Sequence[Run], other: Sequence[Run]) -> list[Run]:
    """Return what is in both sets."""
    return list(_common(one, other))


def _common(one: Sequence[Run], other: Sequence[Run]) -> Iterator[Run]:
    i = j = 0
    while i < len(one) and j < len(other):
        start = max(one[i][0], other[j][0])
        first_end, second_end = sum(one[i]), sum(other[j])
        if start < (end := min(first_end, second_end)):
            yield start, end - start
        if first_end <= second_end:
            i += 1
        else:
            j += 1


def without(runs: Sequence[Run], others: Sequence[Run]) -> list[Run]:
    """Return what is in the first set and not in the second."""
    if not runs:
        return []
    end = sum(runs[-1])
    gaps, at = [], 0
    for start, length in others:
        if start > at:
            gaps.append((at, start - at))
        at = start + length
    if end > at:
        gaps.append((at, end - at))
    return common(runs, gaps)


def total(runs: Iterable[Run]) -> int:
    """Return how many bytes there are in runs."""
    return sum(length for _, length in runs)
