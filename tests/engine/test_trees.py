"""Trees: left running, killed and restarted, and restarted from an older image."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from crd.engine.api import After
from crd.engine.userspace.tree import frozen
from crd.errors import AccessDenied, TargetGone, TargetUnsupported
from crd.target import procfs
from crd.target.tree import has_ended
from tests.engine.images import restarted, restarted_elsewhere, taken_with
from tests.engine.programs import FORKS_STORM, SHARES_MEMORY, SPAWNS_STORM, VFORKS, compiled, interpreted
from tests.engine.test_changes import dump_without_preflight
from tests.support.victims import Program, Victim, python_script, until

pytestmark = pytest.mark.root

FAMILIES = [("tree", []), ("tree", ["adopts"]), ("tree-musl", []), ("tree-musl", ["adopts"]), ("heirs", []),
            ("heirs-musl", ["adopts"])]
IDS = [" ".join([name, *arguments]) for name, arguments in FAMILIES]


def relations(program: Program) -> dict[int, tuple[str, int, int, int, int]]:
    """Return what each member of the family is, and to whom."""
    found = {}
    for pid in program.family():
        try:
            stat = procfs.stat(pid)
        except TargetGone:  # what crd had made
            continue
        parent = stat.parent_pid if pid != program.pid else 0
        state = stat.state if stat.state in "TZ" else "running"
        found[pid] = (state, parent, stat.process_group, stat.session, stat.exit_signal)
    return found


@pytest.mark.parametrize("method", ["auto", "copy"])
@pytest.mark.parametrize(("name", "arguments"), FAMILIES, ids=IDS)
def test_left_running(tmp_path: Path, name: str, arguments: list[str], method: str) -> None:
    with Victim(name, tmp_path, *arguments) as victim:
        before = relations(victim)
        for _ in range(5):
            _, result = taken_with(victim, method=method)
            assert result.tasks == result.threads == len([one for one in before.values() if one[0] != "Z"])
            until("stops", lambda: relations(victim) == before)
        victim.assert_unharmed()
        victim.verify()


@pytest.mark.parametrize(("name", "arguments"), FAMILIES, ids=IDS)
def test_killed_and_restarted(tmp_path: Path, name: str, arguments: list[str]) -> None:
    with Victim(name, tmp_path, *arguments) as victim:
        before = relations(victim)
        for _ in range(3):
            image, _ = taken_with(victim, method="copy")
            victim.kill_tree()
            result = restarted(image, victim)
            assert result.notes == ()
            until("stops", lambda: relations(victim) == before)
        victim.verify()


def test_an_older_image(tmp_path: Path) -> None:
    with Victim("tree", tmp_path) as victim:
        image, _ = taken_with(victim)
        taken_with(victim, "newer")
        until("the end of the snapshots", lambda: not [pid for pid in procfs.pids() if is_of(victim, pid)])
        victim.kill_tree()
        restarted(image, victim)
        victim.verify()


def is_of(program: Program, pid: int) -> bool:
    """Whether somebody outside of the family works where it does: a snapshot child that has been left."""
    try:
        where = Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return False
    return where.is_relative_to(program.directory) and pid not in program.family()


@pytest.mark.parametrize(("name", "arguments"), FAMILIES, ids=IDS)
def test_in_a_namespace_of_its_own(tmp_path: Path, name: str, arguments: list[str]) -> None:
    with Victim(name, tmp_path, *arguments) as victim:
        image, _ = taken_with(victim)
        victim.kill_tree()
        restarted_elsewhere(image, victim, "--pidns")
        victim.verify()


@pytest.mark.parametrize("after", [After.KILL, After.STOP])
def test_all_are_killed_or_stopped(tmp_path: Path, after: After) -> None:
    with Victim("tree", tmp_path) as victim:
        family = victim.family()
        taken_with(victim, after=after)
        if after is After.KILL:
            until("their end", lambda: all(map(has_ended, family)))
        else:
            until("all to stop", lambda: all(procfs.stat(pid).state in "TZ" for pid in family))
            for pid in family:
                os.kill(pid, signal.SIGCONT)


def counts(program: Program) -> list[int]:
    return [int(word) for word in (program.directory / "counts").read_text().split()]


def goes_on(program: Program, steps: int = 10) -> None:
    """Wait until the program has done more, none of it wrong."""
    before = counts(program)
    until("progress", lambda: counts(program)[0] > before[0] + steps)
    assert counts(program)[-1] == 0
    assert program.is_running()


@pytest.mark.parametrize("source", [FORKS_STORM, SPAWNS_STORM], ids=["fork", "posix_spawn"])
def test_storms(tmp_path: Path, source: str) -> None:
    """Children come and go faster than anybody can look: no child escapes, and each is waited for once."""
    with compiled(tmp_path, source) as program:
        until("counts", (tmp_path / "counts").exists)
        for _ in range(20):
            image, _ = taken_with(program)
            goes_on(program)
        until("the end of the snapshots", lambda: not [pid for pid in procfs.pids() if is_of(program, pid)])
        for _ in range(4):
            image, _ = taken_with(program, after=After.KILL)
            until("their end", lambda: not [pid for pid in procfs.pids() if works_in(tmp_path, pid)])
            program.wait_gone()
            restarted(image, program)
            goes_on(program)


def test_a_parent_in_vfork_is_stopped_when_its_child_executes_or_ends(tmp_path: Path) -> None:
    """Nobody can stop it before, and its child, which uses its memory, is let go until then."""
    with compiled(tmp_path, VFORKS) as program:
        until("counts", (tmp_path / "counts").exists)
        for _ in range(6):
            image, _ = taken_with(program)
            goes_on(program, 2)
        for _ in range(2):
            image, _ = taken_with(program, after=After.KILL)
            until("their end", lambda: not [pid for pid in procfs.pids() if works_in(tmp_path, pid)])
            program.wait_gone()
            restarted(image, program)
            goes_on(program, 2)


def test_processes_with_one_memory_are_refused_unharmed(tmp_path: Path) -> None:
    """An image has one memory for each process: two would come back with copies, and wait for each other for ever."""
    with compiled(tmp_path, SHARES_MEMORY) as program:
        for refused in (lambda: taken_with(program), lambda: dump_without_preflight(program)):
            with pytest.raises(TargetUnsupported) as caught:
                refused()
            [reason] = caught.value.reasons
            assert reason.code == "task.shared"
            assert f"shares its memory with pid {program.pid}" in reason.reason
            assert len(program.family()) == 2
            program.assert_unharmed()


def test_whoever_is_frozen_has_no_running_relative(tmp_path: Path) -> None:
    with compiled(tmp_path, FORKS_STORM) as program:
        for _ in range(30):
            with frozen(program.pid, 5) as tree:
                there = {pid for pid in procfs.pids() if works_in(tmp_path, pid)}
                assert there <= {*tree.processes, *tree.zombies}
                assert all(procfs.stat(pid).state == "t" for pid in tree.processes)


def works_in(directory: Path, pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == directory
    except OSError:  # a zombie, or nobody
        return False


def test_a_shell_that_pipes_and_sleeps_twenty_times_in_a_row(tmp_path: Path) -> None:
    script = ("n=0; while :; do n=$((n+1)); x=$(/bin/echo $n | cat | cat); echo $x >>count.txt; /bin/sleep 0.01; "
              "(echo sub $n; /bin/sleep 0.005) >>subshell.txt & wait; done")
    with Program(["/bin/bash", "-c", script], tmp_path) as program:
        count = tmp_path / "count.txt"

        def lines() -> list[str]:
            return count.read_text().split("\n")[:-1] if count.exists() else []

        for _ in range(20):
            before = len(lines())
            until("numbers", lambda: len(lines()) > before + 2)  # noqa: B023
            image, _ = taken_with(program, after=After.KILL)
            until("their end", lambda: not [pid for pid in procfs.pids() if works_in(tmp_path, pid)])
            program.wait_gone()
            restarted(image, program)
        before = len(lines())
        until("numbers", lambda: len(lines()) > before + 2)
        assert lines() == [str(number) for number in range(1, len(lines()) + 1)]
        assert program.stderr() == ""


def test_a_tree_of_several_users_is_nobodys(tmp_path: Path) -> None:
    with interpreted(tmp_path, """
import os, time
is_parent = os.fork()
open("ready", "w").close()
if is_parent: os.setresuid(65534, 65534, 65534)
while True: time.sleep(0.01)
""") as program:
        until("another user", lambda: program.status()["Uid"].split()[0] == "65534")
        with pytest.raises(AccessDenied):
            taken_with(program, only_uid=65534)
        program.assert_unharmed()
        _, result = taken_with(program)
        assert (result.uid, result.tasks) == (0, 2)
        _, result = taken_with(program, tree=False, only_uid=65534)
        assert (result.uid, result.tasks) == (65534, 1)


def restart_a_few_times(program: Program) -> None:
    until("counts", (program.directory / "counts").exists)
    for _ in range(3):
        image, _ = taken_with(program)
        goes_on(program)
        image, _ = taken_with(program, after=After.KILL)
        until("their end", lambda: not [pid for pid in procfs.pids() if works_in(program.directory, pid)])
        program.wait_gone()
        restarted(image, program)
        goes_on(program)
    assert program.stderr() == ""


POOL = """
import multiprocessing, os, time

def work(number):
    time.sleep(0.003)
    return number * number

if __name__ == "__main__":
    with multiprocessing.Pool(4) as pool:
        number = wrong = 0
        open("ready", "w").close()
        while True:
            wrong += pool.map(work, range(number, number + 40)) != [i * i for i in range(number, number + 40)]
            number += 40
            with open("counts.new", "w") as file:
                print(number, wrong, file=file)
            os.rename("counts.new", "counts")
"""
JOBS = """
setsid bash -c 'while :; do echo . >>session.txt; sleep 0.02; done' &
set -m
(while :; do echo . >>group.txt; sleep 0.02; done) &
touch ready
n=0; while :; do n=$((n+1)); got=$(seq 1 $n | sort -n | tail -1); [ $got = $n ] || touch wrong
echo $n 0 >counts.new; mv counts.new counts; sleep 0.01; done
"""


def test_a_pool_of_python_processes(tmp_path: Path) -> None:
    """Pipes, semaphores in deleted files, threads and processes."""
    with python_script(tmp_path, POOL) as program:
        restart_a_few_times(program)


def test_a_shell_with_jobs_in_sessions_and_groups_of_their_own(tmp_path: Path) -> None:
    with Program(["/bin/bash", "-c", JOBS], tmp_path) as program:
        restart_a_few_times(program)
        for name in ("session.txt", "group.txt"):
            before = (tmp_path / name).stat().st_size
            until(name, lambda: (tmp_path / name).stat().st_size > before)  # noqa: B023
        assert not (tmp_path / "wrong").exists()


ECHO = """
import os, time
ask, answer = os.pipe(), os.pipe()
if os.fork() == 0:
    os.setpgid(0, 0)
    while True: os.write(answer[1], os.read(ask[0], 100))
number = 0
file = os.open("new", os.O_CREAT | os.O_WRONLY)
open("ready", "w").close()
while True:
    os.write(ask[1], b"%d" % number)
    wrong = os.read(answer[0], 100) != b"%d" % number
    number += 1
    os.pwrite(file, b"%12d %d" % (number, wrong), 0)
    if number == 1: os.rename("new", "counts")
    time.sleep(0.002)
"""


def test_new_numbers(tmp_path: Path) -> None:
    with python_script(tmp_path, ECHO) as program:
        until("counts", (tmp_path / "counts").exists)
        before = relations(program)
        image, _ = taken_with(program)
        result = restarted(image, pids="new")
        original, program.pid = program.pid, result.root_pid
        assert result.pids.keys() == before.keys()
        assert not {*result.pids.values()} & before.keys()
        now = result.pids
        renamed = {now[pid]: (state, now.get(parent, 0), now[group], now[session], exit_signal)
                   for pid, (state, parent, group, session, exit_signal) in before.items()}
        assert relations(program) == renamed
        program.pid = original
        program.kill_tree()
        program.restarted_as(result.root_pid)
        goes_on(program)


def test_a_tree_whose_session_is_led_from_outside(tmp_path: Path) -> None:
    script = tmp_path / "echo.py"
    script.write_text(ECHO)
    with Program(["/bin/bash", "-c", f"{sys.executable} {script} & wait"], tmp_path) as shell:
        until("counts", (tmp_path / "counts").exists)
        outer = shell.pid
        shell.pid = root = procfs.children(outer)[0]
        before = relations(shell)
        image, result = taken_with(shell)
        assert result.tasks == 2
        shell.kill_tree()
        os.kill(outer, signal.SIGKILL)
        result = restarted(image, shell)
        assert [note for note in result.notes if f"group {outer}" in note]
        assert [note for note in result.notes if f"session {outer}" in note]
        ours = os.getsid(0)
        led = {pid: (state, parent, root if group == outer else group, ours, number)
               for pid, (state, parent, group, _, number) in before.items()}
        until("all", lambda: relations(shell) == led)
        goes_on(shell)
