"""Hashes of pages, and the index over them."""

from __future__ import annotations

import os
import random
from array import array

import pytest
from blake3 import blake3

from crd.native.memory import PAGE_BYTES
from crd.native.pages import HASH_BYTES, PageIndex, page_hashes


@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 9, 16, 100])
def test_hashes_are_those_of_the_specification(n: int) -> None:
    pages = os.urandom(n * PAGE_BYTES)
    assert bytes(page_hashes(pages)) == b"".join(
        blake3(pages[at:at + PAGE_BYTES]).digest(length=HASH_BYTES) for at in range(0, len(pages), PAGE_BYTES))


def test_an_index_knows_what_it_has_seen() -> None:
    index, chance = PageIndex(), random.Random(1)
    numbers: dict[bytes, int] = {}
    for _ in range(30):
        pages = [chance.choice([b"a", b"b", chance.randbytes(8), bytes([chance.randrange(256)])]) * PAGE_BYTES
                 for _ in range(100)]
        pages = [page[:PAGE_BYTES] for page in pages]
        before = dict(numbers)
        found = index.add(b"".join(pages), len(numbers))
        for page in pages:
            numbers.setdefault(page, len(numbers))
        assert list(found.numbers) == [numbers[page] for page in pages]
        assert found.n_fresh == sum(found.fresh) == len(numbers) - len(before)
        firsts = [page not in before and page not in pages[:at] for at, page in enumerate(pages)]
        assert list(map(bool, found.fresh)) == firsts
        assert found.hashes == page_hashes(b"".join(pages))


def test_what_was_learnt_is_known() -> None:
    index = PageIndex()
    pages = b"".join(bytes([n]) * PAGE_BYTES for n in range(200))
    index.learn(page_hashes(pages), array("Q", range(1 << 40, (1 << 40) + 200)))
    index.learn(page_hashes(pages), array("Q", range(200)))
    found = index.add(pages + b"x" * PAGE_BYTES, 5)
    assert list(found.numbers) == [*range(1 << 40, (1 << 40) + 200), (1 << 40) + ord("x")]
    assert found.n_fresh == 0


def test_an_index_that_is_full_takes_no_more_and_is_right_all_the_same() -> None:
    index = PageIndex(limit=100)
    pages = b"".join(bytes([n]) * PAGE_BYTES for n in range(200))
    index.learn(page_hashes(pages[:50 * PAGE_BYTES]), array("Q", range(1000, 1050)))
    assert list(index.add(pages, 0).numbers) == [*range(1000, 1050), *range(150)]
    again = index.add(pages, 150)
    assert list(again.numbers) == [*range(1000, 1050), *range(50), *range(150, 250)]
    index.learn(page_hashes(pages), array("Q", range(200)))
    assert index.add(pages, 250).n_fresh == 100


def test_hashes_and_numbers_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="as many"):
        PageIndex().learn(bytes(HASH_BYTES), array("Q", [1, 2]))
