"""Stopping and letting go: nobody stays behind, whatever the target does meanwhile."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.engine.userspace.tree import frozen
from crd.errors import FreezeTimeout, TargetGone, TracerBusy
from crd.native import tracee
from tests.engine.programs import THREADS_COME_AND_GO, VFORK_WITHOUT_EXEC, compiled, interpreted
from tests.support.victims import Victim, sleep, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.victims import Program

pytestmark = pytest.mark.root


def states(program: Program) -> set[str]:
    return {line for tid in program.tasks()
            for line in Path(f"/proc/{program.pid}/task/{tid}/status").read_text().splitlines()
            if line.startswith("State:")}


@contextmanager
def tracer_of(tid: int) -> Iterator[int]:
    """A process that traces the thread."""
    ready, say_ready = os.pipe()
    child = os.fork()
    if not child:
        tracee.seize(tid)
        os.write(say_ready, b"!")
        signal.pause()
        os._exit(0)
    try:
        assert os.read(ready, 1)
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(say_ready)


def in_a_process_of_its_own(work: Callable[[], None]) -> None:
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:  # noqa: BLE001  (a fork of the test must not return into it)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_all_threads_are_stopped_the_main_one_first(tmp_path: Path) -> None:
    with Victim("counter", tmp_path, 8) as victim:
        with frozen(victim.pid, 5) as tree:
            assert sorted(tree.root.threads) == victim.tasks()
            assert next(iter(tree.root.threads)) == victim.pid
            assert states(victim) == {"State:\tt (tracing stop)"}
        victim.assert_unharmed()
        assert 0 < tree.stop_seconds < 5
        victim.verify()


def test_an_error_lets_go_too(tmp_path: Path) -> None:
    def stop_and_fail() -> None:
        with frozen(victim.pid, 5):
            raise KeyError

    with Victim("counter", tmp_path, 8) as victim:
        with pytest.raises(KeyError):
            stop_and_fail()
        victim.assert_unharmed()
        victim.verify()


def test_we_run_as_before_afterwards(tmp_path: Path) -> None:
    before = os.sched_getscheduler(0), os.sched_getaffinity(0), os.sched_getparam(0).sched_priority
    with sleep(tmp_path, 60) as program, frozen(program.pid, 5):
        assert os.sched_getscheduler(0) == os.SCHED_FIFO
    assert (os.sched_getscheduler(0), os.sched_getaffinity(0), os.sched_getparam(0).sched_priority) == before


def test_another_tracer_is_named_and_the_threads_before_it_run_on(tmp_path: Path) -> None:
    with Victim("counter", tmp_path, 8) as victim:
        with tracer_of(victim.tasks()[5]) as tracer, pytest.raises(TracerBusy) as refused, frozen(victim.pid, 5):
            pass
        assert refused.value.details["tracer"] == tracer
        victim.assert_unharmed()
        victim.verify()


def test_who_does_not_stop_in_time_does_not_hold_the_others(tmp_path: Path) -> None:
    with compiled(tmp_path, VFORK_WITHOUT_EXEC) as program:
        def freeze_in_vain() -> None:
            with pytest.raises(FreezeTimeout) as late, frozen(program.pid, 1.0):
                pass
            stuck = late.value.details["tid"]
            assert stuck != program.pid
            assert "\nTracerPid:\t0\n" in Path(f"/proc/{program.pid}/task/{program.pid}/status").read_text()

        in_a_process_of_its_own(freeze_in_vain)
        program.assert_untraced()
        (tmp_path / "go").touch()
        until("the end of the thread", lambda: len(program.tasks()) == 1)
        program.assert_unharmed()


def test_threads_that_come_and_go(tmp_path: Path) -> None:
    with compiled(tmp_path, THREADS_COME_AND_GO) as program:
        for _ in range(100):
            with frozen(program.pid, 5) as tree:
                assert sorted(tree.root.threads) == program.tasks()
        program.assert_unharmed()


@pytest.mark.parametrize("caller", ["the main thread", "another thread"])
def test_programs_that_are_replaced_again_and_again(tmp_path: Path, caller: str) -> None:
    with interpreted(tmp_path, f"""
import os, sys, threading
open("ready", "w").close()
def replace(): os.execv(sys.executable, [sys.executable, "-S", sys.argv[0]])
if "{caller}" == "another thread":
    threading.Thread(target=replace).start()
    threading.Event().wait()
replace()
""") as program:
        for _ in range(60):
            with frozen(program.pid, 5) as tree:
                assert tree.root.memory.read(tree.root.registers.rsp, 8)
        program.assert_unharmed()


def test_a_target_that_is_killed_in_the_stop_leaves_no_zombie_to_us(tmp_path: Path) -> None:
    with Victim("counter", tmp_path, 8) as victim:
        with frozen(victim.pid, 5):
            os.kill(victim.pid, signal.SIGKILL)
        victim.wait_gone()


def test_nobody_is_there(tmp_path: Path) -> None:
    with sleep(tmp_path, 60) as program:
        program.kill()
        with pytest.raises(TargetGone), frozen(program.pid, 5):
            pass


def test_a_stopped_task_stays_stopped_until_it_is_continued(tmp_path: Path) -> None:
    with sleep(tmp_path, 60) as program:
        os.kill(program.pid, signal.SIGSTOP)
        until("stop", lambda: states(program) == {"State:\tT (stopped)"})
        for _ in range(5):
            with frozen(program.pid, 5) as tree:
                assert tree.root.leader.stop.is_group_stop
        until("stopped again", lambda: states(program) == {"State:\tT (stopped)"})
        os.kill(program.pid, signal.SIGCONT)
        until("running", program.is_running)
