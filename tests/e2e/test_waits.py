"""Waits of epoll_wait(2) go on with what is left of their time, however often the program is saved."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.direct import checkpoint, restart
from tests.support.victims import Program, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

WHOLE_MS = 1_000_000
SLEPT_SECONDS = 0.3
SURELY_SLEPT_MS = 100
"""Less than SLEPT_SECONDS: the scheduler leaves out what other virtual machines took of the processor."""
WAITING = """
import select, threading
threading.Thread(target=lambda: select.epoll().poll(1000)).start()
select.epoll().poll(1000)
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    with Program([sys.executable, "-c", WAITING], tmp_path) as running:
        yield running


def left_ms(program: Program) -> list[int]:
    """Return what is left of the waits, which both threads are in."""
    def waits() -> list[int]:
        calls = [Path(f"/proc/{program.pid}/task/{tid}/syscall").read_text().split() for tid in program.tasks()]
        return [int(words[4], 16) for words in calls if words[0] == "232"]  # epoll_wait
    until("two waits", lambda: len(waits()) == 2)
    return waits()


def test_it_is_shorter_by_what_is_over_after_each_checkpoint(program: Program, tmp_path: Path) -> None:
    began = time.monotonic()
    before = left_ms(program)
    assert before == [WHOLE_MS] * 2
    for number in range(3):
        time.sleep(SLEPT_SECONDS)
        checkpoint(program, tmp_path / f"{number}.image")
        now = left_ms(program)
        assert all(left <= earlier - SURELY_SLEPT_MS for left, earlier in zip(now, before, strict=True))
        assert min(now) >= WHOLE_MS - 1000 * (time.monotonic() - began), "it would end too early"
        before = now
    program.kill_tree()
    done = restart(tmp_path / "2.image")
    assert done.returncode == 0, done.stderr
    program.restarted_as(int(done.stdout))
    assert left_ms(program) == before
