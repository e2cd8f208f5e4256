"""What filters of seccomp(2) would say, compared with what they do say."""

from __future__ import annotations

import struct

import pytest

from crd.engine.userspace.bpf import ALLOW, INSTRUCTION, LOG, TooManyWaysError, may_notify, verdicts

LOAD, JEQ, JGT, JSET, AND, RETURN, RETURN_A = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06, 0x16
KILL, ERRNO = 0x8000_0000, 0x0005_0000
NUMBER, FIRST_ARGUMENT = 0, 16


def code(*instructions: tuple[int, int, int, int]) -> bytes:
    return b"".join(INSTRUCTION.pack(*one) for one in instructions)


FORBIDS_39 = code((LOAD, 0, 0, NUMBER), (JEQ, 0, 1, 39), (RETURN, 0, 0, ERRNO | 1), (RETURN, 0, 0, ALLOW))
FORBIDS_FLAG = code((LOAD, 0, 0, FIRST_ARGUMENT), (AND, 0, 0, 0xFF), (JEQ, 0, 1, 4), (RETURN, 0, 0, KILL),
                    (RETURN, 0, 0, LOG))


def test_by_number() -> None:
    assert verdicts(FORBIDS_39, 39, {}) == {ERRNO}
    assert verdicts(FORBIDS_39, 40, {}) == {ALLOW}


def test_what_is_not_known_may_be_anything() -> None:
    assert verdicts(FORBIDS_FLAG, 1, {}) == {KILL, LOG}
    assert verdicts(FORBIDS_FLAG, 1, {0: 4}) == {KILL}
    assert verdicts(FORBIDS_FLAG, 1, {0: 0x104}) == {KILL}
    assert verdicts(FORBIDS_FLAG, 1, {0: 5}) == {LOG}
    assert verdicts(code((LOAD, 0, 0, 8), (RETURN_A, 0, 0, 0)), 1, {}) == {None}


def test_negative_arguments_have_two_words() -> None:
    high = code((LOAD, 0, 0, FIRST_ARGUMENT + 4), (JEQ, 0, 1, 0xFFFF_FFFF), (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, KILL))
    assert verdicts(high, 1, {0: -1}) == {ALLOW}
    assert verdicts(high, 1, {0: 1}) == {KILL}


def test_memory_and_index() -> None:
    assert verdicts(code((LOAD, 0, 0, NUMBER), (0x02, 0, 0, 3), (0x00, 0, 0, 7), (0x61, 0, 0, 3), (0x1D, 0, 1, 0),
                         (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, KILL)), 7, {}) == {ALLOW}


def test_too_many_ways() -> None:
    step = [instruction for at in range(40) for instruction in (
        (LOAD, 0, 0, FIRST_ARGUMENT), (JSET, 0, 2, 1 << at % 32), (0x60, 0, 0, 0), (0x04, 0, 0, 1 << at % 31),
        (0x02, 0, 0, at % 16))]
    with pytest.raises(TooManyWaysError):
        verdicts(code(*step, (RETURN, 0, 0, ALLOW)), 1, {})


def test_one_that_runs_off_its_end() -> None:
    with pytest.raises(IndexError):
        verdicts(code((LOAD, 0, 0, NUMBER)), 1, {})


def test_who_notifies_a_supervisor() -> None:
    assert may_notify(code((RETURN, 0, 0, 0x7FC0_0000)))
    assert not may_notify(FORBIDS_39)


def test_the_words_are_those_of_the_kernel() -> None:
    assert INSTRUCTION.size == struct.calcsize("HBBI") == 8
