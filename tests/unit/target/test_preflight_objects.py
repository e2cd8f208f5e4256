"""Obstacles in what a process has open or mapped, and in whom it shares that with."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from crd.native.syscall import kcmp
from crd.target import preflight
from tests.support.provoked import found, provoked


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


@pytest.mark.root
def test_terminals_of_a_container_have_the_same_numbers_but_are_others(tmp_path: Path) -> None:
    source = "master, slave = os.openpty(); print(os.ttyname(slave), file=open('name', 'w'))"
    with provoked(tmp_path, source) as program:
        number = int((tmp_path / "name").read_text().rpartition("/")[2])
        source = (f"import os; ends = [os.openpty() for _ in range({number} + 1)]; print('ready', flush=True); "
                  "input()")
        mount = 'mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts && exec "$@"'
        container = subprocess.Popen(["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", source],
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with container:
            assert container.stdout is not None
            assert container.stdin is not None
            assert container.stdout.readline() == b"ready\n"
            assert preflight.obstacles(program.pid, kcmp=kcmp) == ()
            container.stdin.write(b"\n")
            container.stdin.flush()
        assert container.returncode == 0


def test_a_terminal_that_controls_a_session_from_elsewhere(tmp_path: Path) -> None:
    source = ("master, slave = os.openpty()\nfcntl.ioctl(slave, 0x540e, 0)\nchild = os.fork()\n"
              "if child == 0: time.sleep(1000)\nos.close(master); os.close(slave)\n"
              "os.write(os.open('pid', os.O_CREAT | os.O_WRONLY), str(child).encode())")
    with provoked(tmp_path, source):
        child = int((tmp_path / "pid").read_text())
        assert "controls a session that is led by another process" in found(child)["fd.terminal"].reason


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
