"""What a stop is the first to write to: learned by one worker, copied before its stop by the next."""

from __future__ import annotations

import mmap
import os
import resource
from typing import TYPE_CHECKING

import pytest

from crd.engine.userspace.touched import Touched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PAGES = 200
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def in_a_fork(work: Callable[[], int]) -> int:
    """Return what work does in a child."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(write_end, str(work()).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return int(text)


def faults_of_a_stop(touched: Touched, memory: mmap.mmap) -> int:
    """Go through what a worker does, and return how many page faults it had in its stop."""
    touched.copy()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for at in range(0, len(memory), mmap.PAGESIZE):
        memory[at] = 1
    found = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    touched.note()
    return found


@pytest.fixture
def memories() -> Iterator[tuple[mmap.mmap, mmap.mmap]]:
    """Two memories whose pages are there."""
    with (mmap.mmap(-1, _PAGES * mmap.PAGESIZE, flags=_PRIVATE) as one,
          mmap.mmap(-1, _PAGES * mmap.PAGESIZE, flags=_PRIVATE) as other):
        for memory in (one, other):
            memory.write(bytes(len(memory)))
        yield one, other


def test_what_one_worker_copies_in_its_stop_the_next_copies_before(memories: tuple[mmap.mmap, mmap.mmap]) -> None:
    touched, memory = Touched(), memories[0]
    assert in_a_fork(lambda: faults_of_a_stop(touched, memory)) >= _PAGES
    assert in_a_fork(lambda: faults_of_a_stop(touched, memory)) < _PAGES // 4


@pytest.mark.parametrize(("stops", "learned_anew"), [
    ([0, 0, 1, 1, 1, 0], [True, False, True, False, False, False]),
    ([0, 0, 0, 0, 1, 1], [True, False, False, False, True, True])],
    ids=["by the one after", "no more after some lessons, which take time"])
def test_what_others_touch_later_is_learned(memories: tuple[mmap.mmap, mmap.mmap], stops: list[int],
                                            learned_anew: list[bool]) -> None:
    touched = Touched()
    faults = [in_a_fork(lambda which=which: faults_of_a_stop(touched, memories[which])) for which in stops]
    assert [n >= _PAGES for n in faults] == learned_anew
