"""The parsers of /proc, on trees made to mislead them and on real processes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crd.errors import CrdError, TargetError, TargetGone
from crd.target import procfs
from tests.support.victims import Victim

if TYPE_CHECKING:
    from collections.abc import Callable

PID = 4242
STAT_TAIL = ("S 1 4242 4242 0 -1 4194560 152 0 0 0 3 1 0 0 20 0 1 0 7777 8192 200 18446744073709551615 "
             "1 2 3 0 0 0 0 4096 0 0 0 0 17 1 0 0 0 0 0 5 6 7 8 9 10 11 19\n")


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc of our own with one empty process."""
    monkeypatch.setattr(procfs, "PROC", tmp_path)
    (tmp_path / str(PID)).mkdir()
    return tmp_path / str(PID)


@pytest.mark.parametrize("name", ["cat", "a b", "(", ")", ") R 1 2 3", "x)\nS 9", "", " ", "\t(((", "🐈", "\x0b1"])
def test_stat_believes_no_name(proc: Path, name: str) -> None:
    (proc / "stat").write_text(f"{PID} ({name}) {STAT_TAIL}")
    stat = procfs.stat(PID)
    assert stat.comm == name
    assert (stat.state, stat.parent_pid, stat.process_group, stat.session) == ("S", 1, PID, PID)
    assert (stat.start_time, stat.exit_signal, stat.exit_code, stat.terminal) == (7777, 17, 19, 0)
    assert not stat.is_kernel_thread


def test_a_name_that_is_no_text(proc: Path) -> None:
    (proc / "stat").write_bytes(b"4242 (\xff\xfe) " + STAT_TAIL.encode())
    assert procfs.stat(PID).comm.encode("utf-8", "surrogateescape") == b"\xff\xfe"


@pytest.mark.parametrize("separator", ["\x0b", "\x0c", "\x1c", "\x1d", "\x85", "\u2028", "\r"])
def test_a_name_cannot_forge_a_line_of_status(proc: Path, separator: str) -> None:
    text = f"Name:\tx{separator}Seccomp:\t0\nTgid:\t7\nUid:\t1\t2\t3\t4\nSeccomp:\t2\n"
    (proc / "status").write_text(text, newline="")
    status = procfs.status(PID)
    assert list(status) == ["Name", "Tgid", "Uid", "Seccomp"]
    assert (status.seccomp, status.uids, status.process_id) == (2, (1, 2, 3, 4), 7)


def test_status_in_numbers(proc: Path) -> None:
    (proc / "status").write_text("Name:\tcat\nUmask:\t0027\nState:\tD (disk sleep)\nTracerPid:\t99\nGid:\t1\t2\t3\t4\n"
                                 "Groups:\t5 6 \nCapEff:\t00000000a80425fb\nNoNewPrivs:\t1\n"
                                 "SigBlk:\t0000000000004000\n")
    status = procfs.status(PID)
    assert (status.umask, status.state, status.tracer_pid) == (0o27, "D", 99)
    assert (status.gids, status.groups, status.no_new_privileges) == ((1, 2, 3, 4), (5, 6), True)
    assert (status.capabilities("Eff"), status.signals("SigBlk")) == (0xa80425fb, 1 << 14)


def test_maps_with_odd_names(proc: Path) -> None:
    lines = [
        "00400000-00401000 r-xp 00001000 fe:01 12   /usr/bin/a b  c ",
        r"7f0000000000-7f0000002000 rw-s 00000000 00:05 9  /tmp/new\012line",
        r"7f0000003000-7f0000004000 r--p 00000000 00:05 8  /tmp/\101 is no escape",
        "7f0000005000-7f0000006000 ---p 00000000 00:00 0 ",
        "7f0000007000-7f0000008000 rw-p 00000000 00:00 0  [anon:x (deleted)] (deleted)",
        "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]",
    ]
    (proc / "maps").write_text("\n".join(lines) + "\n")
    code, shared, backslash, guard, anonymous, vsyscall = procfs.maps(PID)
    assert (code.start, code.end, code.offset, code.inode) == (0x400000, 0x401000, 0x1000, 12)
    assert (code.path, code.device, code.protection) == ("/usr/bin/a b  c ", os.makedev(0xfe, 1), 5)
    assert (shared.path, shared.shared, shared.is_file) == ("/tmp/new\nline", True, True)
    assert backslash.path == r"/tmp/\101 is no escape"
    assert (guard.path, guard.protection, guard.is_file) == ("", 0, False)
    assert anonymous.deleted
    assert not anonymous.is_file
    assert vsyscall.start == 0xffffffffff600000


def test_flags_of_memory(proc: Path) -> None:
    (proc / "smaps").write_text("00400000-00401000 r-xp 00000000 fe:01 12 /VmFlags: ht\nRss:   4 kB\n"
                                "VmFlags: rd ex mr \n00402000-00403000 rw-p 00000000 00:00 0 \nVmFlags: rd wr io\n"
                                "00404000-00405000 rw-p 00000000 00:00 0 \nProtectionKey:         2\nVmFlags: rd wr \n"
                                "00406000-00407000 --xp 00000000 00:00 0 \nProtectionKey:         1\nVmFlags: ex \n"
                                "00408000-00409000 rw-p 00000000 00:00 0 \nProtectionKey:         0\nVmFlags: rd\n")
    assert procfs.vm_flags(PID) == {0x400000: "rd ex mr", 0x402000: "rd wr io", 0x404000: "rd wr pk",
                                    0x406000: "ex", 0x408000: "rd"}


def test_descriptor_information(proc: Path) -> None:
    (proc / "fdinfo").mkdir()
    (proc / "fdinfo" / "3").write_text(
        "pos:\t12\nflags:\t02100001\nmnt_id:\t29\nino:\t7\nlock:\t1: POSIX  ADVISORY  WRITE 77 fe:00:123 0 EOF\n"
        "lock:\t2: OFDLCK ADVISORY  READ -1 fe:00:123 5 9\nlock:\t3: LEASE  ACTIVE    READ  77 fe:00:123 0 EOF\n")
    info = procfs.fdinfo(PID, 3)
    assert (info.position, info.flags, info.mount_id, info.close_on_exec) == (12, 0o2100001, 29, True)
    assert info.extra == {"ino": "7"}
    assert [(lock.kind, lock.exclusive, lock.pid, lock.start, lock.end) for lock in info.locks] == [
        ("POSIX", True, 77, 0, 2**63 - 1), ("OFDLCK", False, -1, 5, 9), ("LEASE", False, 77, 0, 2**63 - 1)]


def test_limits_and_timers(proc: Path) -> None:
    (proc / "limits").write_text(Path("/proc/self/limits").read_text())
    limits = procfs.limits(PID)
    assert len(limits) == 16
    assert all(0 <= soft <= hard <= 2**64 - 1 for soft, hard in limits)
    (proc / "timers").write_text("ID: 0\nsignal: 40/0000000000001234\nnotify: signal/pid.7\nClockID: 1\n"
                                 "ID: 4\nsignal: 41/0000000000000000\nnotify: signal/tid.9\nClockID: -6\n")
    first, second = procfs.posix_timers(PID)
    assert (first.timer_id, first.signal, first.value, first.notify, first.tid, first.clock) == (
        0, 40, 0x1234, "signal", 0, 1)
    assert (second.timer_id, second.tid, second.clock) == (4, 9, -6)


def test_words_and_cgroups(proc: Path) -> None:
    (proc / "cmdline").write_bytes(b"prog\0\0last\0")
    (proc / "environ").write_bytes(b"")
    (proc / "cgroup").write_text("6:cpu,freezer:/a:b\n1:name=systemd:/\n0::/user.slice\n")
    assert procfs.command_line(PID) == ["prog", "", "last"]
    assert procfs.environment(PID) == []
    assert procfs.cgroups(PID) == {"cpu,freezer": "/a:b", "name=systemd": "/", "": "/user.slice"}


READERS: dict[str, Callable[[int], object]] = {
    "stat": procfs.stat, "status": lambda pid: procfs.status(pid).uids, "maps": procfs.maps, "limits": procfs.limits,
    "smaps": procfs.vm_flags, "timers": procfs.posix_timers,
    "fdinfo/3": lambda pid: procfs.fdinfo(pid, 3), "oom_score_adj": lambda pid: procfs.number(pid, "oom_score_adj"),
    "personality": lambda pid: procfs.hexadecimal(pid, "personality"), "task/7/children": procfs.children,
}


@pytest.mark.parametrize("name", [name for name in READERS if name != "status"])
@settings(deadline=None)
@given(content=st.one_of(st.binary(max_size=200), st.text(alphabet="0123456789abcdef():/\n -ID", max_size=120).map(
    str.encode)))
def test_nonsense_is_an_error_or_a_value(tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes) -> None:
    tree = tmp_path_factory.getbasetemp() / "nonsense"
    file = tree / str(PID) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    (tree / str(PID) / "task" / "7").mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    real, procfs.PROC = procfs.PROC, tree
    try:
        READERS[name](PID)
    except CrdError as error:
        assert type(error) is TargetError  # noqa: PT017  a value would do as well
    finally:
        procfs.PROC = real


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_what_vanished_is_gone(proc: Path, reader: Callable[[int], object]) -> None:
    assert proc.is_dir()
    with pytest.raises(TargetGone) as caught:
        reader(PID + 1)
    assert caught.value.details == {"pid": PID + 1}


def test_a_real_process_from_all_sides(tmp_path: Path) -> None:
    with Victim("counter", tmp_path, 3) as victim:
        pid = victim.pid
        assert procfs.stat(pid).comm == "counter-0"
        assert procfs.stat(pid).session == pid
        assert procfs.threads(pid) == victim.tasks()
        assert procfs.command_line(pid)[2] == "3"
        assert f"PATH={os.environ['PATH']}" in procfs.environment(pid)
        assert procfs.children(os.getpid()).count(pid) == 1
        assert pid in set(procfs.pids())
        assert procfs.namespaces(pid) == procfs.namespaces(os.getpid())
        code = next(entry for entry in procfs.maps(pid) if entry.path.endswith("/counter"))
        assert procfs.map_file_link(pid, code) == code.path
        assert procfs.map_file_stat(pid, code).st_ino == code.inode
        assert set(procfs.vm_flags(pid)) == {entry.start for entry in procfs.maps(pid)}
        fds = procfs.fd_numbers(pid)
        assert fds[:3] == [0, 1, 2]
        assert procfs.read_link(pid, "fd/0") == "/dev/null"
        assert procfs.fd_stat(pid, 0).st_rdev == os.makedev(1, 3)
        assert any(procfs.fdinfo(pid, fd).close_on_exec for fd in fds)
        ticks = time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
        assert 0 < procfs.stat(pid).start_time <= ticks
    with pytest.raises(TargetGone):
        procfs.maps(pid)
