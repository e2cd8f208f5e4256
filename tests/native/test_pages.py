"""Hashes of pages, and the index over them."""

from __future__ import annotations

import os
import random
import struct
from array import array

import pytest
from blake3 import blake3

from crd.native.memory import PAGE_BYTES
from crd.native.pages import HASH_BYTES, PageIndex, PageKey

KEY = PageKey(bytes(range(32)))


def nh(page: bytes, key: bytes) -> bytes:
    """Return NH as UMAC's authors write it, four times under a key that is shifted."""
    m, k = struct.unpack("<1024I", page), struct.unpack("<1030I", key)
    sums = [sum(((m[i] + k[i + 2 * p]) & 0xFFFFFFFF) * ((m[i + 1] + k[i + 1 + 2 * p]) & 0xFFFFFFFF)
                for i in range(0, 1024, 2)) & 0xFFFFFFFFFFFFFFFF for p in range(4)]
    return struct.pack("<4Q", *sums)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 33])
def test_hashes_are_keyed_blake3_of_nh(n: int) -> None:
    pages = os.urandom(n * PAGE_BYTES)
    derived = blake3(KEY.secret, derive_key_context="crd 2026 page hashes").digest(length=4120 + 32)
    assert bytes(KEY.hashes(pages)) == b"".join(
        blake3(nh(pages[at:at + PAGE_BYTES], derived[:4120]), key=derived[4120:]).digest(length=HASH_BYTES)
        for at in range(0, len(pages), PAGE_BYTES))


@pytest.mark.parametrize("page", [bytes(PAGE_BYTES), b"\xff" * PAGE_BYTES])
def test_hashes_of_extreme_words_do_not_overflow(page: bytes) -> None:
    assert bytes(KEY.hashes(page)) == blake3(nh(page, KEY.derived[:4120]), key=KEY.derived[4120:]).digest(length=16)


def test_any_change_of_a_page_and_any_other_key_gives_another_hash() -> None:
    page, chance = os.urandom(PAGE_BYTES), random.Random(2)
    changed = []
    for at in range(0, PAGE_BYTES, 8):
        other = bytearray(page)
        other[at + chance.randrange(8)] ^= 1 << chance.randrange(8)
        changed.append(bytes(other))
    words = [page[at:at + 8] for at in range(0, PAGE_BYTES, 8)]
    changed += [b"".join([*words[:at], words[at + 1], words[at], *words[at + 2:]]) for at in range(511)]
    hashes = [bytes(KEY.hashes(one)) for one in [page, *changed]]
    assert len(set(hashes)) == len(hashes)
    assert PageKey().hashes(page) != PageKey().hashes(page)


def test_an_index_knows_what_it_has_seen() -> None:
    index, chance = PageIndex(KEY), random.Random(1)
    numbers: dict[bytes, int] = {}
    for _ in range(30):
        pages = [chance.choice([b"a", b"b", chance.randbytes(8), bytes([chance.randrange(256)])]) * PAGE_BYTES
                 for _ in range(100)]
        pages = [page[:PAGE_BYTES] for page in pages]
        before = dict(numbers)
        room = bytearray(b"".join(pages))
        found = index.add(room, len(numbers))
        for page in pages:
            numbers.setdefault(page, len(numbers))
        assert list(found.numbers) == [numbers[page] for page in pages]
        firsts = b"".join(page for at, page in enumerate(pages) if page not in before and page not in pages[:at])
        assert len(firsts) == (len(numbers) - len(before)) * PAGE_BYTES
        assert room[:len(firsts)] == firsts
        assert found.hashes == KEY.hashes(firsts)


def test_what_was_learnt_is_known() -> None:
    index = PageIndex(KEY)
    pages = b"".join(bytes([n]) * PAGE_BYTES for n in range(200))
    index.learn(KEY.hashes(pages), array("Q", range(1 << 40, (1 << 40) + 200)))
    index.learn(KEY.hashes(pages), array("Q", range(200)))
    found = index.add(bytearray(pages + b"x" * PAGE_BYTES), 5)
    assert list(found.numbers) == [*range(1 << 40, (1 << 40) + 200), (1 << 40) + ord("x")]
    assert not found.hashes


def test_an_index_that_is_full_takes_no_more_and_is_right_all_the_same() -> None:
    index = PageIndex(KEY, limit=100)
    pages = b"".join(bytes([n]) * PAGE_BYTES for n in range(200))
    index.learn(KEY.hashes(pages[:50 * PAGE_BYTES]), array("Q", range(1000, 1050)))
    assert list(index.add(bytearray(pages), 0).numbers) == [*range(1000, 1050), *range(150)]
    again = index.add(bytearray(pages), 150)
    assert list(again.numbers) == [*range(1000, 1050), *range(50), *range(150, 250)]
    index.learn(KEY.hashes(pages), array("Q", range(200)))
    assert len(index.add(bytearray(pages), 250).hashes) == 100 * HASH_BYTES


def test_hashes_and_numbers_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="as many"):
        PageIndex(KEY).learn(bytes(HASH_BYTES), array("Q", [1, 2]))
