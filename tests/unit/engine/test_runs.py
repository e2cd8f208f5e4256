"""Sets of pages, held against sets of numbers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from crd.engine.userspace.mem.runs import common, joined, total, without

ANY_RUNS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8)), max_size=12)
SETS = ANY_RUNS.map(joined)


def pages(runs: list[tuple[int, int]]) -> set[int]:
    return {page for start, length in runs for page in range(start, start + length)}


def assert_is(runs: list[tuple[int, int]], expected: set[int]) -> None:
    assert pages(runs) == expected
    assert total(runs) == len(expected)
    assert all(first + length < second for (first, length), (second, _) in pairwise(runs))


@given(ANY_RUNS)
def test_joined(runs: list[tuple[int, int]]) -> None:
    assert_is(joined(runs), pages(runs))


@given(SETS, SETS)
def test_common(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    assert pages(common(one, other)) == pages(one) & pages(other)
    assert total(common(one, other)) == len(pages(one) & pages(other))


@given(SETS, SETS)
def test_without(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    assert_is(without(one, other), pages(one) - pages(other))
