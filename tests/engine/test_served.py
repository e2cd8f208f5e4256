"""checkpoint(2) and restart(2) as programs see them that make them by number, with syscall(2) and nothing else."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.engine.api import RestartOptions, RestartResult, restart
from crd.image.reader import ImageReader
from crd.image.verify import verified
from crd.native.notification import answer
from tests.engine import callers
from tests.support.served import Served, compiled, received
from tests.support.victims import sleep, until

if TYPE_CHECKING:
    from crd.engine.api import ServedCall

pytestmark = pytest.mark.root

CRID = "crid"


def begin(directory: Path, source: str, *words: str) -> Served:
    return Served([compiled(directory, source), *words], directory)


def served_until_ready(program: Served) -> list[ServedCall]:
    """Serve all calls of a program that rests at last."""
    calls = []
    while not (program.directory / "ready").exists():
        if call := program.called():
            calls.append(program.carry_out(call))
        assert program.is_running(), program.stderr()
    program.assert_unharmed()
    return calls


def restarted(program: Served, image: str = "image", listeners: list[int] | None = None) -> RestartResult:
    """End a program, and have it back from an image."""
    def confirm(ready: RestartResult) -> None:
        if listeners is not None:
            listeners.extend(map(os.dup, ready.listeners))

    program.kill_tree()
    for path in (program.directory / "ready", program.directory / "returned"):
        path.unlink(missing_ok=True)
    with (program.directory / image).open("rb") as file:
        result = restart(file.fileno(), options=RestartOptions(served=listeners is not None), confirm=confirm)
    program.restarted_as(result.root_pid)
    return result


def is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        return sum(1 for _ in verified(ImageReader(file))) > 20


def test_three_ways_to_return(tmp_path: Path) -> None:
    """A crid for who was saved, 0 for who was restarted: the classic of sys_checkpoint."""
    with begin(tmp_path, callers.SAVES_ITSELF) as program:
        saved = program.serve()
        assert saved.pid == program.pid
        assert saved.result == 1
        until("the return of the call", lambda: program.output() == "1 42\n")
        program.assert_unharmed()
        assert "ENOSYS" in "".join(restarted(program).notes)
        until("the second return, where the first was printed", lambda: program.output() == "0 42\n")
        assert program.status()["Seccomp"] == "0"


def test_a_restarted_program_is_under_the_filter_again(tmp_path: Path) -> None:
    again = 'puts(name(checkpoint(0, image("2"), 0)));'
    source = callers.SAVES_ITSELF.replace("for (;;)", f"{again}\n    for (;;)")
    listeners: list[int] = []
    with begin(tmp_path, source) as program:
        program.serve()
        program.call()
        assert not restarted(program, listeners=listeners).notes
        program.hang_up()
        [program.listener] = listeners
        assert program.serve().result == 2
        assert program.status()["Seccomp_filters"] == "1"
        until("both lines", lambda: program.output() == "0 42\ncrid\n")
        assert is_whole(tmp_path / "2")


def test_errors(tmp_path: Path) -> None:
    with sleep(tmp_path, 1000) as other:
        tmp_path.chmod(0o777)
        with begin(tmp_path, callers.ERRORS, str(other.pid)) as program:
            calls = served_until_ready(program)
            results = dict(line.split() for line in program.output().splitlines())
            assert results == {
                "flags": "EINVAL", "flags-before-fd": "EINVAL", "high-flags": "EINVAL", "closed": "EBADF",
                "negative": "EBADF", "fd-before-pid": "EBADF", "reading": "EBADF", "place": "EBADF", "nobody": "ESRCH",
                "negative-pid": "ESRCH", "high-word-of-fd": CRID, "itself-by-pid": CRID, "no-reader": "EPIPE",
                "full": "ENOSPC", "not-ours": "EPERM", "ours": CRID}
            crids = [call.result for call in calls if call.result > 0]
            assert crids == sorted(set(crids))
            other.assert_unharmed()


def test_a_thread_calls_and_the_others_run_on_meanwhile_and_afterwards(tmp_path: Path) -> None:
    with begin(tmp_path, callers.A_THREAD_CALLS) as program:
        served_until_ready(program)
        assert program.output() == "crid\nall count\n"
        restarted(program)
        until("the restarted threads", (tmp_path / "ready").exists)
        assert program.output().startswith("0\nall count\n")
        assert len(program.tasks()) == 4


def test_two_threads_call_at_once(tmp_path: Path) -> None:
    with begin(tmp_path, callers.TWO_THREADS_CALL) as program:
        served_until_ready(program)
        lines = [line.split() for line in program.output().splitlines()]
        assert sorted(int(crid) for _, crid in lines) == list(range(1, 11))
        assert sorted(who for who, _ in lines) == ["one"] * 5 + ["two"] * 5
        assert is_whole(tmp_path / "one")
        assert is_whole(tmp_path / "two")


def test_signals_do_not_interrupt_a_call_that_is_served(tmp_path: Path) -> None:
    with begin(tmp_path, callers.SIGNALS_COME, "SA_RESTART") as program:
        assert [call.result for call in served_until_ready(program)] == [*range(1, 21)]
        assert program.output() == "crid\n" * 20


def test_a_signal_may_interrupt_a_call_before_its_turn(tmp_path: Path) -> None:
    with begin(tmp_path, callers.SIGNALS_COME) as program:
        calls = served_until_ready(program)
        lines = program.output().splitlines()
        assert {*lines} <= {"crid", "EINTR"}
        assert lines.count("crid") == len(calls)


def test_what_a_child_executes_calls_for_itself_and_for_its_parent(tmp_path: Path) -> None:
    with begin(tmp_path, callers.THE_CHILD_CALLS) as program:
        calls = served_until_ready(program)
        assert program.output() == "child crid\nparent crid\n"
        child = calls[0].pid
        assert {call.pid for call in calls} == {child}
        assert child != program.pid
        listeners: list[int] = []
        result = restarted(program, "parent", listeners)
        assert result.tasks == len(listeners) == 2
        until("the return in the child", lambda: program.output().startswith("child crid\nparent 0\n"))
        for pid in (program.pid, child):
            assert "\nSeccomp_filters:\t1\n" in Path(f"/proc/{pid}/status").read_text()
        for listener in listeners:
            os.close(listener)


def test_an_image_through_a_pipe_to_a_thread_of_its_own(tmp_path: Path) -> None:
    with begin(tmp_path, callers.A_READER_OF_ITS_OWN) as program:
        served_until_ready(program)
        assert program.output() == "crid\n"
        assert is_whole(tmp_path / "image")


def test_a_supervisor_that_dies_in_the_midst_leaves_an_error(tmp_path: Path) -> None:
    """The image is in a pipe that nobody reads: its writer is killed while it waits."""
    with begin(tmp_path, callers.NOBODY_READS) as program:
        worker = os.fork()
        if not worker:
            program.serve()
            os._exit(0)
        until("the hold", lambda: program.status().get("State", "")[:1] == "t")
        time.sleep(0.05)
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        served_until_ready(program)
        assert program.output() == "EIO\ncrid\n"


def test_a_supervisor_that_dies_at_any_instant_harms_nobody(tmp_path: Path) -> None:
    """What it leaves unanswered is answered as the daemon does: with an error."""
    spread = random.Random(6)
    with begin(tmp_path, callers.CALLS_ON_AND_ON) as program:
        for _ in range(40):
            call = program.call()
            worker = os.fork()
            if not worker:
                with suppress(BaseException):
                    program.carry_out(call)
                os._exit(0)
            time.sleep(spread.uniform(0, 0.08))
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
            answer(program.listener, call.cookie, -errno.EIO)
            assert program.is_running()
        (tmp_path / "enough").touch()
        served_until_ready(program)
        assert program.output() == "enough\n"


def test_who_is_killed_in_the_call_is_gone(tmp_path: Path) -> None:
    with begin(tmp_path, callers.SAVES_ITSELF) as program:
        call = program.call()
        program.kill()
        assert program.carry_out(call).result < 0


def test_without_a_supervisor_there_is_no_call(tmp_path: Path) -> None:
    with begin(tmp_path, callers.NOBODY_READS) as program:
        program.call()
        program.hang_up()
        until("both calls to fail", (tmp_path / "ready").exists)
        assert program.output() == "ENOSYS\nENOSYS\n"


@pytest.mark.parametrize("method", ["snapshot", "copy"])
def test_both_methods(tmp_path: Path, method: str) -> None:
    with begin(tmp_path, callers.SAVES_ITSELF) as program:
        assert program.serve(method=method).result == 1
        restarted(program)
        until("the second return", lambda: program.output() == "0 42\n")


def test_a_program_is_saved_from_outside_while_it_waits_for_its_turn(tmp_path: Path) -> None:
    """A call that nobody has received yet is made again, by who was saved and by who is restarted."""
    listeners: list[int] = []
    with begin(tmp_path, callers.SAVES_ITSELF) as program:
        until("its call", program.is_called)
        assert program.saved_from_outside(tmp_path / "outside")
        assert program.serve().result == 2
        until("the return", lambda: program.output() == "2 42\n")
        restarted(program, "outside", listeners)
        program.hang_up()
        [program.listener] = listeners
        assert received(program.listener).tid == program.pid


def test_a_program_is_replaced_by_an_image(tmp_path: Path) -> None:
    with begin(tmp_path, callers.SAVES_ITSELF) as saved:
        saved.serve()
        saved.kill()
    other = tmp_path / "other"
    other.mkdir()
    with begin(other, callers.RESTARTS, str(tmp_path / "image")) as program:
        errors = [program.serve().result for _ in range(6)]
        assert all(result < 0 for result in errors)
        done = program.serve()
        assert (done.pid, done.result) == (program.pid, 0)
        assert os.waitstatus_to_exitcode(os.waitpid(program.pid, 0)[1]) == 0
        assert dict(line.split() for line in program.output().splitlines()) == {
            "flags": "EINVAL", "flags-before-fd": "EINVAL", "closed": "EBADF", "writing": "EBADF",
            "rubbish": "EINVAL", "empty": "EPIPE"}
        assert program.replaced_by.root_pid == saved.pid
        program.restarted_as(saved.pid)
        until("0 in who was restarted", lambda: saved.output() == "0 42\n")
        for listener in program.next_listeners:
            os.close(listener)
        os.kill(saved.pid, signal.SIGKILL)
        os.waitpid(saved.pid, 0)


def test_whoever_is_not_root_restarts_nothing(tmp_path: Path) -> None:
    with begin(tmp_path, callers.SAVES_ITSELF) as saved:
        saved.serve()
        saved.kill()
    other = tmp_path / "other"
    other.mkdir(mode=0o777)
    other.chmod(0o777)
    with begin(other, callers.RESTARTS, str(tmp_path / "image"), "as nobody") as program:
        served_until_ready(program)
        assert program.output().endswith("returned EPERM\n")


def test_whose_image_is_in_the_way_goes_on(tmp_path: Path) -> None:
    """The saved program still runs under its number."""
    with begin(tmp_path, callers.SAVES_ITSELF) as saved:
        saved.serve()
        other = tmp_path / "other"
        other.mkdir()
        with begin(other, callers.RESTARTS, str(tmp_path / "image")) as program:
            served_until_ready(program)
            assert program.output().endswith("returned EBUSY\n")
        saved.assert_unharmed()
