"""Numbers of pages, many at once."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crd.errors import NativeError
from crd.native.numbers import from_differences, pages_by_place, replace_places, to_differences

SHIFT = 32
NUMBERS = st.lists(st.integers(0, (1 << 64) - 1), max_size=50)


@given(NUMBERS)
def test_differences_and_back(numbers: list[int]) -> None:
    words = array("Q", numbers)
    to_differences(words)
    assert list(words) == [(number - before - 1) % (1 << 64)
                           for before, number in zip([0, *numbers], numbers, strict=False)]
    from_differences(words)
    assert list(words) == numbers


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, (1 << 32) - 1)), max_size=50))
def test_places(parts: list[tuple[int, int]]) -> None:
    words = array("Q", (place << SHIFT | page for place, page in parts))
    assert pages_by_place(words, 5) == [sum(place == wanted for place, _ in parts) for wanted in range(5)]
    replace_places(words, [9, 8, 7, 6, 0xFFFF_FFFF])
    assert list(words) == [[9, 8, 7, 6, 0xFFFF_FFFF][place] << SHIFT | page for place, page in parts]


def test_a_place_that_is_not_there() -> None:
    words = array("Q", [0, 3 << SHIFT])
    with pytest.raises(NativeError):
        pages_by_place(words, 3)
    with pytest.raises(NativeError):
        replace_places(words, [0, 1, 2])
