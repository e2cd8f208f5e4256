"""Whose tasks are, by their credentials."""

from __future__ import annotations

import pytest

from crd.target.owner import owner

PLAIN = ((7,) * 4, (8,) * 4, 0)


@pytest.mark.parametrize(("threads", "uid"), [
    ([PLAIN], 7),
    ([PLAIN, PLAIN], 7),
    ([PLAIN, ((7,) * 4, (9,) * 4, 0)], 7),
    ([((7, 0, 0, 0), (8,) * 4, 0)], 0),
    ([((7, 7, 0, 7), (8,) * 4, 0)], 0),
    ([((7, 7, 7, 0), (8,) * 4, 0)], 0),
    ([((7,) * 4, (8, 42, 42, 42), 0)], 0),
    ([((7,) * 4, (8,) * 4, 1 << 13)], 0),
    ([PLAIN, ((9,) * 4, (8,) * 4, 0)], 0),
    ([PLAIN, ((0,) * 4, (0,) * 4, (1 << 41) - 1)], 0),
    ([], 0),
])
def test_what_has_more_than_one_plain_user_is_roots(threads: list[tuple[tuple[int, ...], tuple[int, ...], int]],
                                                    uid: int) -> None:
    assert owner(threads) == uid
