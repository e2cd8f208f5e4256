"""What a stop is the first to write to: learned by one worker, copied before its stop by the next."""

from __future__ import annotations

import mmap
import os
import resource
from typing import TYPE_CHECKING

from crd.engine.userspace.touched import Touched

if TYPE_CHECKING:
    from collections.abc import Callable

_PAGES = 200


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


def test_what_one_worker_copies_in_its_stop_the_next_copies_before() -> None:
    with mmap.mmap(-1, _PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.write(bytes(len(memory)))
        touched = Touched()
        assert in_a_fork(lambda: faults_of_a_stop(touched, memory)) >= _PAGES
        assert in_a_fork(lambda: faults_of_a_stop(touched, memory)) < _PAGES // 4


def test_what_others_touch_later_is_learned_by_the_one_after() -> None:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, _PAGES * mmap.PAGESIZE, flags=flags) as one, mmap.mmap(
            -1, _PAGES * mmap.PAGESIZE, flags=flags) as other:
        for memory in (one, other):
            memory.write(bytes(len(memory)))
        touched = Touched()
        faults = [in_a_fork(lambda memory=memory: faults_of_a_stop(touched, memory))
                  for memory in (one, one, other, other, other, one)]
        assert [n >= _PAGES for n in faults] == [True, False, True, False, False, False]


def test_after_some_lessons_no_worker_takes_the_time_to_leave_word() -> None:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, _PAGES * mmap.PAGESIZE, flags=flags) as one, mmap.mmap(
            -1, _PAGES * mmap.PAGESIZE, flags=flags) as other:
        for memory in (one, other):
            memory.write(bytes(len(memory)))
        touched = Touched()
        faults = [in_a_fork(lambda memory=memory: faults_of_a_stop(touched, memory))
                  for memory in (one, one, one, one, other, other)]
        assert [n >= _PAGES for n in faults] == [True, False, False, False, True, True]
