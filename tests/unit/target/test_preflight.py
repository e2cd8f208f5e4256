"""Obstacles in what a process is, provoked by real ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.errors import TargetGone, TargetNotFound
from crd.native import tracee
from crd.native.syscall import kcmp
from crd.target import preflight, procfs, task_obstacles
from tests.support import victims
from tests.support.provoked import PRELUDE, found, provoked
from tests.support.victims import Program, Victim, until

if TYPE_CHECKING:
    from collections.abc import Iterator

KCMP_FILES = 2
@pytest.mark.parametrize(("name", "arguments"), [
    ("idle", [1]), ("idle-musl", []), ("counter", [64]), ("blocked", []), ("memory", []), ("files", []), ("pipes", []),
    ("signals", []), ("timers", []), ("vector", []), ("robust", []), ("rwhog", [8]), ("stopped", []),
    ("events", []), ("epolls", []), ("watches", []), ("netlinks", []), ("multicasts", []), ("unnamed", []),
    ("named", []), ("fifos", []), ("locks", []), ("unixes", []),
    ("inets", []), ("terminals", []), ("connections", []), ("confined", []),
    ("segments", []), ("queues", []), ("mqueues", [])])
def test_nothing_stands_in_the_way_of_the_victims(tmp_path: Path, name: str, arguments: list[int]) -> None:
    with Victim(name, tmp_path, *arguments) as victim:
        assert preflight.check(victim.pid, kcmp=kcmp).obstacles == ()
        victim.assert_untraced()


@pytest.mark.root
def test_nor_of_a_process_of_another_user_for_root(tmp_path: Path) -> None:
    with Victim("credentials", tmp_path) as victim:
        assert preflight.obstacles(victim.pid, kcmp=kcmp) == ()


def test_nor_of_plain_programs(tmp_path: Path) -> None:
    with victims.sleep(tmp_path, 100) as sleep, victims.bash_loop(tmp_path) as bash:
        until("their exec", lambda: all(procfs.read_link(program.pid, "exe") in procfs.read(program.pid, "maps")
                                        and procfs.stat(program.pid).comm in {"sleep", "bash"}
                                        for program in (sleep, bash)))
        assert preflight.check(sleep.pid, kcmp=kcmp) == preflight.CheckReport(sleep.pid, "sleep", ())
        assert preflight.obstacles(bash.pid, kcmp=kcmp) == ()


@pytest.mark.parametrize(("code", "source", "said"), [
    ("fd.epoll", ("poll = select.epoll(); ends = os.pipe(); poll.register(ends[0])\n"
                 "if os.fork() == 0: time.sleep(1000)\nos.close(ends[0]); os.close(ends[1])"),
     "watches a descriptor that was closed here"),
    ("task.seccomp", ("ends = os.pipe(); fd = new('strict'); libc.prctl(22, 1, 0, 0, 0); os.write(fd, b'x')\n"
                     "os.read(ends[0], 1)"), "strict mode"),
    ("task.unshared", ("def alone():\n    call(272, 0x400); flag.set(); time.sleep(1000)\n"
                      "flag = threading.Event(); threading.Thread(target=alone, daemon=True).start(); flag.wait()"),
     "of its own"),
    *[pytest.param("task.namespace", f"call(272, {flag:#x})", f"{name} namespace", marks=pytest.mark.root)
      for name, flag in [("mnt", 0x20000), ("cgroup", 0x2000000), ("uts", 0x4000000), ("ipc", 0x8000000),
                         ("user", 0x10000000), ("pid", 0x20000000), ("net", 0x40000000), ("time", 0x80)]],
])
def test_what_it_is(tmp_path: Path, code: str, source: str, said: str) -> None:
    strict = "strict" in source
    with (contextmanager(strictly)(tmp_path, source) if strict else provoked(tmp_path, source)) as program:
        obstacle = found(program.pid)[code]
        assert said in f"{obstacle.object} {obstacle.reason}"


def test_obstacles_of_children_say_whose_they_are(tmp_path: Path) -> None:
    source = "if os.fork() == 0:\n    fd = call(425, 4, ctypes.create_string_buffer(120)); ready()"
    with provoked(tmp_path, source) as program:
        child, = procfs.children(program.pid)
        until("it", lambda: len(preflight.obstacles(program.pid, kcmp=kcmp)) == 1)
        obstacle, = preflight.obstacles(program.pid, kcmp=kcmp)
        assert obstacle.code == "fd.io-uring"
        assert obstacle.object.startswith(f"pid {child} (python")


def test_a_thread_that_has_given_back_its_files_as_it_ends_is_no_loner(tmp_path: Path) -> None:
    source = ("def brief():\n    while not os.path.exists('go'): time.sleep(0.01)\n"
              "threading.Thread(target=brief).start()")
    with provoked(tmp_path, source) as program:
        thread = program.tasks()[1]
        tracee.seize(thread)  # an ended thread with a tracer stays until that has waited for it
        (tmp_path / "go").touch()
        until("its end", lambda: procfs.stat(f"{program.pid}/task/{thread}").state == "Z")
        assert kcmp(program.pid, thread, KCMP_FILES) != 0
        assert list(task_obstacles.loners(program.pid, [program.pid, thread], kcmp)) == []
        tracee.wait_end(thread)


def strictly(directory: Path, source: str) -> Iterator[Program]:
    """As ``provoked``; who is under seccomp's strict mode can only write to what is open."""
    with victims.python_script(directory, PRELUDE + source) as program:
        until("strict mode", lambda: program.status().get("Seccomp") == "1")
        yield program


def test_crd_itself_and_its_ancestors() -> None:
    assert "crd itself" in found(os.getpid())["task.self"].reason
    assert "ancestor" in found(os.getppid())["task.self"].reason


def test_kernel_threads() -> None:
    kernel_threads = []
    for pid in procfs.pids():
        with suppress(TargetGone):
            kernel_threads += [pid] if procfs.stat(pid).is_kernel_thread else []
    if not kernel_threads:
        pytest.skip("no kernel threads in sight")
    assert list(found(kernel_threads[0])) == ["task.kernel-thread"]


def test_no_such_process() -> None:
    child = subprocess.Popen(["/bin/true"])
    child.wait()
    for pid in (child.pid, 0, -1, 2**22 + 1, 2**80):
        with pytest.raises(TargetNotFound):
            preflight.check(pid)


def test_a_zombie() -> None:
    child = subprocess.Popen(["/bin/true"])
    until("zombie", lambda: procfs.stat(child.pid).state == "Z")
    assert "has ended" in found(child.pid)["task.zombie"].reason
    child.wait()


def test_a_zombie_leader_with_living_threads(tmp_path: Path) -> None:
    source = "threading.Thread(target=time.sleep, args=(1000,)).start(); call(60, 0)"
    with victims.python_script(tmp_path, PRELUDE + source) as program:
        until("zombie", lambda: procfs.stat(program.pid).state == "Z")
        assert "main thread" in found(program.pid)["task.zombie"].reason


def test_a_program_whose_file_is_gone(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copy("/bin/sleep", copy)
    with Program([copy, "1000"], tmp_path) as program:
        until("its exec", lambda: procfs.stat(program.pid).comm == "copy")
        copy.unlink()
        assert "deleted" in found(program.pid)["task.exe"].reason


def test_a_thread(tmp_path: Path) -> None:
    with Victim("counter", tmp_path, 2) as victim:
        obstacles = found(victim.tasks()[1])
        assert list(obstacles) == ["task.thread"]
        assert str(victim.pid) in obstacles["task.thread"].remedy


def test_one_thread_that_is_traced(tmp_path: Path) -> None:
    with Victim("counter", tmp_path, 4) as victim:
        tid = victim.tasks()[2]
        tracee.seize(tid)
        try:
            obstacle = found(victim.pid)["task.traced"]
        finally:
            tracee.interrupt(tid)
            tracee.wait(tid)
            tracee.detach(tid)
        assert obstacle.object == f"thread {tid}"
        assert f"pid {os.getpid()}" in obstacle.reason
        victim.verify()


def test_a_parent_in_vfork(tmp_path: Path) -> None:
    source = "if call(56, 0x4100 | 17, 0, 0, 0, 0) == 0: ready()"
    with provoked(tmp_path, source) as program:
        try:
            obstacles = found(program.pid)
        finally:
            for pid in (program.pid, *procfs.children(program.pid)):  # it first: on its stack the child has been
                os.kill(pid, signal.SIGKILL)
        assert "waits in vfork" in obstacles["task.vfork"].reason
        assert "task.shared" not in obstacles, "it ends when the child executes"


def test_a_short_wait_for_the_disk_is_no_obstacle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers = iter([("D", "7"), ("D", "7"), ("S", "8")])

    def status(_pid: object) -> task_obstacles.Status:
        state, switches = next(answers)
        return procfs.Status(State=f"{state} (x)", voluntary_ctxt_switches=switches)
    before = {1: status(0)}
    monkeypatch.setattr(procfs, "status", status)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    assert list(task_obstacles.freezing(os.getpid(), before)) == []


def test_a_long_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = procfs.Status(State="D (disk sleep)", voluntary_ctxt_switches="7")
    monkeypatch.setattr(procfs, "status", lambda _pid: stuck)
    monkeypatch.setattr(task_obstacles, "STUCK_SECONDS", 0.02)
    obstacle, = task_obstacles.freezing(os.getpid(), {os.getpid(): stuck})
    assert obstacle.code == "task.uninterruptible"


def test_a_32_bit_program(tmp_path: Path) -> None:
    (tmp_path / "small.s").write_text(".globl _start\n_start: mov $29, %eax\nint $0x80\njmp _start\n")  # pause()
    subprocess.run(["gcc", "-m32", "-nostdlib", "-static", "-o", "small", "small.s"], cwd=tmp_path, check=True)
    try:
        program = Program([tmp_path / "small"], tmp_path)
    except OSError:
        pytest.skip("this kernel runs no 32-bit programs (CONFIG_IA32_EMULATION)")
    with program:
        until("its pause", lambda: (stat := procfs.stat(program.pid)).comm == "small" and stat.state == "S")
        assert list(found(program.pid)) == ["task.32-bit"]


def test_everything_in_one_run_the_most_important_first(tmp_path: Path) -> None:
    source = ("import subprocess; child = subprocess.Popen(['/bin/sleep', '1000'])\n"
              "fd = call(425, 4, ctypes.create_string_buffer(120))\n"
              "map(fd, SHARED)")
    with provoked(tmp_path, source) as program:
        codes = [one.code for one in preflight.obstacles(program.pid, kcmp=kcmp)]
        assert codes == ["fd.io-uring", "memory.io-uring"]


def test_hostile_names_are_harmless(tmp_path: Path) -> None:
    source = ("libc.prctl(15, b') R 1\\n\\x1b[2J')\n"
              "name = 'a\\n\\x1b[31m \\udcff (deleted)'; fd = new(name); os.mkdir('d')\n"
              "os.link(name, 'd/b'); os.unlink(name)")
    with provoked(tmp_path, source) as program:
        report = preflight.check(program.pid)
        assert report.comm == r") R 1\n\x1b[2J"
        assert report.obstacles[0].object.isprintable()
        assert json.dumps([report.obstacles[0].object]).isprintable()


def test_a_process_that_ends_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with victims.sleep(tmp_path, 1000) as program:
        monkeypatch.setattr(task_obstacles, "kinship", lambda _pid: program.kill() or ())
        with pytest.raises(TargetGone):
            preflight.obstacles(program.pid)


def test_it_needs_no_native_code() -> None:
    source = "import sys, crd.target.preflight; sys.exit(any(name.startswith('crd.native') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0
