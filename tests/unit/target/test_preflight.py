"""Every obstacle, provoked by a real process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.errors import Obstacle, TargetGone, TargetNotFound
from crd.native import tracee
from crd.native.syscall import kcmp
from crd.target import permission, preflight, procfs, task_obstacles
from tests.support import victims
from tests.support.victims import Program, Victim, until

if TYPE_CHECKING:
    from collections.abc import Iterator

KCMP_FILES = 2
PRELUDE = """
import ctypes, fcntl, mmap, os, select, signal, socket, struct, sys, tempfile, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = libc.mmap.restype = libc.shmat.restype = ctypes.c_long
libc.mmap.argtypes = [ctypes.c_long] * 6
libc.shmat.argtypes = [ctypes.c_long] * 3
def call(*numbers):
    result = libc.syscall(*(ctypes.c_long(n) if isinstance(n, int) else n for n in numbers))
    if result < 0:
        raise OSError(ctypes.get_errno(), "syscall %d" % numbers[0])
    return result
def map(fd, flags, length=4096, protection=3):
    result = libc.mmap(0, length, protection, flags, fd, 0)
    if result == -1:
        raise OSError(ctypes.get_errno(), "mmap")
    return result
def ready():
    open("ready", "w").close()
    while True:
        signal.pause()
def new(name):
    return os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
SHARED, PRIVATE, ANONYMOUS, HUGE, NORESERVE = 1, 2, 0x20, 0x40000, 0x4000
"""


@contextmanager
def provoked(directory: Path, source: str) -> Iterator[Program]:
    """A python that has done what ``source`` says and sleeps then."""
    with victims.python_script(directory, f"{PRELUDE}{source}\nready()\n") as program:
        def ready() -> bool:
            assert program.status().get("State", "Z")[0] != "Z", program.stderr()
            return (directory / "ready").exists()
        until("readiness", ready)
        yield program


def found(pid: int) -> dict[str, Obstacle]:
    """Obstacles by code."""
    obstacles = preflight.obstacles(pid, kcmp=kcmp)
    assert all(one.object and one.reason and one.remedy for one in obstacles)
    return {obstacle.code: obstacle for obstacle in obstacles}


@pytest.mark.parametrize(("name", "arguments"), [
    ("idle", [1]), ("idle-musl", []), ("counter", [64]), ("blocked", []), ("memory", []), ("files", []), ("pipes", []),
    ("signals", []), ("timers", []), ("vector", []), ("robust", []), ("rwhog", [8]), ("stopped", []),
    ("events", []), ("epolls", []), ("watches", []), ("netlinks", []), ("unnamed", []), ("named", []),
    ("fifos", []), ("locks", []), ("unixes", []),
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


@pytest.mark.parametrize(("code", "source"), [
    ("fd.terminal", "master, slave = os.openpty(); os.close(master)"),
    ("fd.socket", "s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12); s.bind((0, 0))"),
    ("fd.pidfd", "fd = os.pidfd_open(os.getppid())"),
    ("fd.io-uring", "fd = call(425, 4, ctypes.create_string_buffer(120))"),
    ("fd.userfaultfd", "fd = call(323, 1)"),
    pytest.param("fd.fanotify", "fd = call(300, 0, 0)", marks=pytest.mark.root),
    pytest.param("fd.device", "fd = os.open('/dev/kmsg', os.O_WRONLY)", marks=pytest.mark.root),
    ("fd.special", "fd = os.open('/proc/self/ns/net', os.O_RDONLY)"),
    ("fd.unlinked", "os.mkdir('d'); fd = new('x'); os.link('x', 'd/y'); os.unlink('x')"),
    pytest.param("fd.memfd", "fd = os.memfd_create('name', os.MFD_HUGETLB | os.MFD_HUGE_1GB)", marks=pytest.mark.skipif(
        not Path("/sys/kernel/mm/hugepages/hugepages-1048576kB").exists(), reason="no pages of 1 GiB")),
    ("memory.unlinked", ("fd = new('x'); os.ftruncate(fd, 4096); map(fd, PRIVATE); os.close(fd)\n"
                        "os.mkdir('d'); os.link('x', 'd/y'); os.unlink('x')")),
    ("fd.unlinked", "os.mkfifo('x'); fd = os.open('x', os.O_RDWR); os.link('x', 'y'); os.unlink('x')"),
    ("fd.lease", ("os.close(new('x')); fd = os.open('x', os.O_RDONLY); fcntl.fcntl(fd, fcntl.F_SETLEASE, 0)\n"
                  "os.unlink('x')")),
    ("memory.huge-pages", ("fd = os.memfd_create('name', os.MFD_HUGETLB); os.ftruncate(fd, 2 << 20)\n"
                           "map(fd, PRIVATE | NORESERVE, 2 << 20)")),
    ("memory.device", "fd = os.open('/dev/zero', os.O_RDWR); map(fd, PRIVATE); os.close(fd)"),
    ("memory.aio", "context = ctypes.c_ulong(); call(206, 8, ctypes.byref(context))"),
    ("memory.io-uring", "fd = call(425, 4, ctypes.create_string_buffer(120)); map(fd, SHARED)"),
    ("memory.userfaultfd", ("fd = call(323, 1); fcntl.ioctl(fd, 0xc018aa3f, struct.pack('QQQ', 0xaa, 0, 0))\n"
                           "area = map(-1, PRIVATE | ANONYMOUS)\n"
                           "fcntl.ioctl(fd, 0xc020aa00, struct.pack('QQQQ', area, 4096, 1, 0))")),
    pytest.param("memory.protection-key", "call(329, map(-1, PRIVATE | ANONYMOUS), 4096, 3, call(330, 0, 0))",
                 marks=pytest.mark.skipif("ospke" not in Path("/proc/cpuinfo").read_text(),
                                          reason="the processor has no protection keys")),
    ("memory.sealed", "call(462, map(-1, PRIVATE | ANONYMOUS), 4096, 0)"),
])
def test_what_it_has_open_or_mapped(tmp_path: Path, code: str, source: str) -> None:
    with provoked(tmp_path, source) as program:
        obstacles = found(program.pid)
        assert code in obstacles
        assert {one.split(".")[1] for one in obstacles} == {code.split(".")[1]}


@pytest.mark.parametrize("source", [
    "fds = [os.open('/dev/' + name, os.O_RDWR) for name in ('null', 'zero', 'full', 'random', 'urandom')]",
    "ends = os.pipe(); os.write(ends[1], b'data')",
    "ends = os.pipe(); os.close(ends[1])",
    "fd = new('x (deleted)')",
    "fd = new('x'); os.rename('x', 'y')",
    "fd = os.open('/', os.O_PATH); link = os.symlink('/', 'link'); fd = os.open('link', os.O_PATH | os.O_NOFOLLOW)",
    "os.mkfifo('fifo'); fd = os.open('fifo', os.O_PATH)",
    "fd = new('x'); fcntl.flock(fd, fcntl.LOCK_EX); fcntl.lockf(fd, fcntl.LOCK_EX, 10)",
    "fds = [os.eventfd(1), call(283, 1, 0), call(289, -1, ctypes.byref(ctypes.c_ulong(1 << 20)), 8, 0)]",
    "poll = select.epoll(); ends = os.pipe(); poll.register(ends[0]); os.dup(ends[0]); os.close(ends[0])",
    "fds = [os.pidfd_open(os.getpid()), call(294, 0)]",
    "fds = [os.memfd_create('name'), new('x'), os.open('x', os.O_PATH)]; os.unlink('x')",
    "file = tempfile.TemporaryFile(dir='.'); os.mkdir('d'); fd = os.open('d', os.O_RDONLY); os.rmdir('d')",
    "fd = new('x'); new('y'); os.rename('y', 'x')",
    "os.mkdir('d'); os.chdir('d'); os.rmdir('../d'); open('../ready', 'w').close()\nwhile True: signal.pause()",
    "fd = os.memfd_create('name'); os.ftruncate(fd, 4096); map(fd, SHARED); os.close(fd)",
    ("fd = new('x'); os.ftruncate(fd, 4096); map(fd, SHARED); map(fd, PRIVATE, protection=5); os.close(fd)\n"
     "new('y'); os.rename('y', 'x')"),
    "os.mkfifo('x'); fds = [os.open('x', os.O_RDWR), os.open('x', os.O_RDONLY)]; os.unlink('x')",
    "fd = new('x'); fcntl.fcntl(fd, 37, struct.pack('hhqqi4x', 1, 0, 0, 0, 0))",
    "os.close(new('x')); fd = os.open('x', os.O_RDONLY); fcntl.fcntl(fd, fcntl.F_SETLEASE, 0)",
    "pair = socket.socketpair(); other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "server = socket.socket(socket.AF_UNIX); server.bind('x'); server.listen()",
    "sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); sender.bind('x')",
    "listener = socket.create_server(('127.0.0.1', 0)); fresh = socket.socket(socket.AF_INET6)",
    ("listener = socket.create_server(('127.0.0.1', 0)); client = socket.create_connection(listener.getsockname())\n"
     "other = listener.accept()"),
    "sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); sender.connect(('127.0.0.1', 9))",
    "master, slave = os.openpty(); other = os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY)",
    "master, slave = os.openpty()\nfcntl.ioctl(slave, 0x540e, 0)",
    "map(-1, SHARED | ANONYMOUS)",
    "map(-1, PRIVATE | ANONYMOUS, protection=4)",
    pytest.param("map(-1, PRIVATE | ANONYMOUS | HUGE | NORESERVE, 2 << 20)", marks=pytest.mark.root),
    pytest.param("map(-1, SHARED | ANONYMOUS | HUGE | NORESERVE, 2 << 20)", marks=pytest.mark.root),
    "fd = os.memfd_create('name', os.MFD_HUGETLB)",
    "fd = new('x'); os.ftruncate(fd, 4096); map(fd, SHARED); map(fd, PRIVATE)",
])
def test_what_is_no_obstacle(tmp_path: Path, source: str) -> None:
    with provoked(tmp_path, source) as program:
        assert preflight.obstacles(program.pid, kcmp=kcmp) == ()


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


CHILD = "if os.fork() == 0: time.sleep(1000)"


def test_shared_memory_with_a_name_that_another_process_has_mapped(tmp_path: Path) -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.truncate(4096)
        source = f"fd = os.open({file.name!r}, os.O_RDWR); map(fd, SHARED); os.close(fd)\n{CHILD}"
        with provoked(tmp_path, source) as program:
            assert preflight.obstacles(program.pid, kcmp=kcmp) == ()
            alone, = preflight.obstacles(program.pid, kcmp=kcmp, tree=False)
            assert alone.code == "memory.shared"
            assert file.name in alone.object
            assert "shared with pid" in alone.reason


@pytest.mark.parametrize(("code", "source", "said"), [
    ("task.shared", "os.chdir = None\nif call(56, 0x400 | 17, 0, 0, 0, 0) == 0: time.sleep(1000)", "file descriptors"),
    ("memory.shared", f"map(-1, SHARED | ANONYMOUS)\n{CHILD}", "shared with pid"),
    ("fd.pipe", f"ends = os.pipe()\n{CHILD}", "open elsewhere"),
    ("fd.shared", f"fd = os.eventfd(1)\n{CHILD}", "is open elsewhere"),
    ("fd.unix", ("pair = socket.socketpair()\nif os.fork() == 0: pair[1].close(); time.sleep(1000)\n"
                 "pair[0].close()"), "is connected to pid"),
    ("fd.shared", f"s = socket.socket(socket.AF_UNIX)\n{CHILD}", "open elsewhere"),
    ("fd.terminal", ("master, slave = os.openpty()\nif os.fork() == 0: os.close(master); time.sleep(1000)\n"
                     "os.close(slave)"), "is a terminal of pid"),
    ("fd.shared", f"fd = os.memfd_create('x')\n{CHILD}", "open or mapped elsewhere"),
    ("memory.shared", f"fd = os.memfd_create('x'); os.ftruncate(fd, 4096); map(fd, SHARED); os.close(fd)\n{CHILD}",
     "shared with pid"),
    (None, f"fd = new('x')\n{CHILD}", None), (None, "os.fork() or os._exit(0)", None),
])
def test_what_it_shares_with_a_child_is_an_obstacle_for_it_alone(tmp_path: Path, code: str | None, source: str,
                                                                 said: str | None) -> None:
    with provoked(tmp_path, source) as program:
        assert preflight.obstacles(program.pid, kcmp=kcmp) == ()
        alone = preflight.obstacles(program.pid, kcmp=kcmp, tree=False)
        assert [one.code for one in alone] == [code] * len(alone)
        assert not said or said in alone[0].reason


def test_a_terminal_that_controls_a_session_from_elsewhere(tmp_path: Path) -> None:
    source = ("master, slave = os.openpty()\nfcntl.ioctl(slave, 0x540e, 0)\nchild = os.fork()\n"
              "if child == 0: time.sleep(1000)\nos.close(master); os.close(slave)\n"
              "os.write(os.open('pid', os.O_CREAT | os.O_WRONLY), str(child).encode())")
    with provoked(tmp_path, source):
        child = int((tmp_path / "pid").read_text())
        assert "controls a session that is led by another process" in found(child)["fd.terminal"].reason


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
            for child in procfs.children(program.pid):
                os.kill(child, signal.SIGKILL)
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


@pytest.mark.root
def test_a_user_may_not_check_a_process_of_root(tmp_path: Path) -> None:
    with Victim("idle", tmp_path) as victim:
        report = as_nobody(victim.pid)
    assert [one["code"] for one in report] == ["task.denied"]
    assert "runs as uid 0" in report[0]["reason"]


@pytest.mark.root
def test_a_user_may_check_a_process_of_their_own() -> None:
    """Without CAP_CHECKPOINT_RESTORE the mapped files are known by name only."""
    sleep = subprocess.Popen(["/bin/sleep", "1000"], user=65534, group=65534, extra_groups=[], cwd="/",
                             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert as_nobody(sleep.pid) == []
    finally:
        sleep.kill()
        sleep.wait()


@pytest.mark.root
def test_but_not_a_connection_to_somebody_else() -> None:
    """Only CAP_NET_ADMIN may look at it (TCP_REPAIR)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        script = f"exec 3<>/dev/tcp/127.0.0.1/{server.getsockname()[1]}; exec /bin/sleep 1000"
        client = subprocess.Popen(["/bin/bash", "-c", script], user=65534, group=65534, extra_groups=[], cwd="/",
                                  stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until("its exec", lambda: procfs.stat(client.pid).comm == "sleep")
            report = as_nobody(client.pid)
            assert [one["code"] for one in report] == ["fd.tcp"]
            assert "CAP_NET_ADMIN" in report[0]["reason"]
            assert preflight.obstacles(client.pid, kcmp=kcmp) == ()
        finally:
            client.kill()
            client.wait()


@pytest.mark.parametrize(("scope", "said"), [("1\n", None), ("3\n", "by anybody"), ("nonsense", None)])
def test_yama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scope: str, said: str | None) -> None:
    monkeypatch.setattr(permission, "YAMA_SCOPE", tmp_path / "ptrace_scope")
    (tmp_path / "ptrace_scope").write_text(scope)
    reason = permission.why_denied(os.getpid(), task_obstacles.thread_statuses(os.getpid()))
    assert reason is None if said is None else said in str(reason)


def test_yama_without_privileges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permission, "YAMA_SCOPE", tmp_path / "ptrace_scope")
    (tmp_path / "ptrace_scope").write_text("1\n")
    statuses = task_obstacles.thread_statuses(os.getpid())
    monkeypatch.setattr(procfs, "status", lambda _pid: procfs.Status(CapEff="0"))
    assert "ptrace_scope is 1" in str(permission.why_denied(os.getpid(), statuses))


def as_nobody(pid: int) -> list[dict[str, str]]:
    """What preflight tells a user without privileges."""
    source = ("import ctypes, json, os, sys\nfrom dataclasses import asdict\nfrom crd.target import preflight\n"
              "os.setgroups([]); os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3)\n"
              "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"  # dumpable again, as after an exec
              "print(json.dumps([asdict(one) for one in preflight.obstacles(int(sys.argv[1]))]))")
    done = subprocess.run([sys.executable, "-c", source, str(pid)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    value: list[dict[str, str]] = json.loads(done.stdout)
    return value


def test_everything_in_one_run_the_most_important_first(tmp_path: Path) -> None:
    source = ("import subprocess; child = subprocess.Popen(['/bin/sleep', '1000'])\n"
              "fd = call(425, 4, ctypes.create_string_buffer(120))\n"
              "map(fd, SHARED)")
    with provoked(tmp_path, source) as program:
        codes = [one.code for one in preflight.obstacles(program.pid, kcmp=kcmp)]
        assert codes == ["fd.io-uring", "memory.io-uring"]


def test_an_epoll_set_that_changes_all_the_time(tmp_path: Path) -> None:
    source = ("ends = [socket.socketpair() for _ in range(4)]; watch = select.epoll()\n"
              "def change():\n"
              "    while True:\n"
              "        for one, _ in ends: watch.register(one.fileno(), 1)\n"
              "        for one, _ in ends: watch.unregister(one.fileno())\n"
              "threading.Thread(target=change, daemon=True).start()")
    with provoked(tmp_path, source) as program:
        for _ in range(20):
            assert preflight.obstacles(program.pid, kcmp=kcmp) == ()


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
