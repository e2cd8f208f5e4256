"""The engine on real processes: what it chooses, what it refuses, and that it leaves no trace."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crd.engine.api import CheckpointOptions, CheckpointResult, Pids, RestartOptions, checkpoint, restart, wait_for_root
from crd.engine.crid import CridCounter
from crd.engine.userspace.fds import table
from crd.engine.userspace.fds.kind import TryLaterError
from crd.engine.userspace.tree import frozen
from crd.errors import (
    BadRequest,
    FeatureMissing,
    ImageSinkClosed,
    ImageSinkFull,
    NativeError,
    Obstacle,
    PidInUse,
    TargetUnsupported,
)
from crd.image.reader import ImageReader
from crd.image.verify import verified
from tests.support.victims import Program, Victim, python_script, sleep, until

pytestmark = pytest.mark.root

SUBREAPER = """
import ctypes, os, signal, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
children = []
signal.signal(signal.SIGCHLD, lambda *_: children.append(1))
open("ready", "w").close()
while True:
    time.sleep(0.005)
    try:
        os.waitpid(-1, os.WNOHANG)
        children.append(1)
    except ChildProcessError:
        pass
    if children:
        open("adopted", "w").close()
"""


WITHOUT_CHILDREN = """
import os, resource, time
memory = bytearray(b"x") * (4 << 20)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
open("ready", "w").close()
os.setresuid(65534, 65534, 65534)
time.sleep(1e6)
"""


def take(program: Program, path: Path, **options: str) -> CheckpointResult:
    with path.open("wb") as file:
        return checkpoint(program.pid, file.fileno(), crids=CridCounter(path.parent / "crid"),
                          options=CheckpointOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["snapshot", "copy"])
def test_both_methods_write_a_whole_image_and_leave_no_trace(tmp_path: Path, method: str) -> None:
    with Victim("memory", tmp_path) as victim:
        result = take(victim, tmp_path / "image", method=method)
        assert result.method == method
        victim.assert_unharmed()
        assert not Path(f"/proc/{victim.pid}/task/{victim.pid}/children").read_text()
        with (tmp_path / "image").open("rb") as file:
            assert sum(1 for _ in verified(ImageReader(file))) > 50
        victim.verify()


def split(record: Any) -> Iterator[tuple[int, bytes]]:
    """Yield the pages of a record by their addresses."""
    addresses = [run.address + 4096 * page for run in record.runs for page in range(run.pages)]
    for index, address in enumerate(addresses):
        yield address, bytes(record.data[4096 * index:4096 * (index + 1)])


@pytest.mark.parametrize(("mebibytes", "other", "chosen"), [(4, "copy", "copy"), (4, "auto", "snapshot"),
                                                           (0, "auto", "copy")])
def test_equal_memory_by_all_methods(tmp_path: Path, mebibytes: int, other: str, chosen: str) -> None:
    """Little memory is copied, unless something else was asked for."""
    with Victim("idle", tmp_path, mebibytes) as victim:
        pages = []
        for method in ("snapshot", other):
            result = take(victim, tmp_path / method, method=method)
            with (tmp_path / method).open("rb") as file:
                pages.append(dict(page for record in ImageReader(file)
                                  if hasattr(record, "runs") and hasattr(record, "pid") for page in split(record)))
        assert result.method == chosen
        common = pages[0].keys() & pages[1].keys()
        assert common
        changed = [address for address in common if pages[0][address] != pages[1][address]]
        assert len(changed) <= 3, "only the stack and what the loop writes may differ"


def test_a_target_that_can_have_no_child_is_copied(tmp_path: Path) -> None:
    with python_script(tmp_path, WITHOUT_CHILDREN) as program:
        until("user", lambda: program.status()["Uid"].startswith("65534"))
        result = take(program, tmp_path / "image")
        assert (result.method, result.method_reason) == ("copy", "the kernel makes no snapshot child")
        program.assert_unharmed()
        with pytest.raises(NativeError, match="cannot be forked"):
            take(program, tmp_path / "image", method="snapshot")
        program.assert_unharmed()


def test_a_stop_that_ends_while_the_snapshot_child_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = [TryLaterError(Obstacle("fd.content", "a file", "is being written"))]

    def dump(*arguments: Any) -> table.FileTable:
        if later:
            raise later.pop()
        return table.dump(*arguments)

    monkeypatch.setattr("crd.engine.userspace.dump.table", SimpleNamespace(dump=dump))
    with Victim("memory", tmp_path) as victim:
        assert take(victim, tmp_path / "image", method="snapshot").method == "snapshot"
        assert not later
        victim.assert_unharmed()
        assert not Path(f"/proc/{victim.pid}/task/{victim.pid}/children").read_text()
        victim.verify()


def test_a_subreaper_never_sees_our_child(tmp_path: Path) -> None:
    with python_script(tmp_path, SUBREAPER) as program:
        until("ready", (tmp_path / "ready").exists)
        for number in range(3):
            result = take(program, tmp_path / f"{number}.image")
            assert result.method == "copy"
            assert "orphans" in result.method_reason
        program.assert_unharmed()
        assert not (tmp_path / "adopted").exists()


def test_signals_that_come_during_a_stop_are_neither_lost_nor_doubled(tmp_path: Path) -> None:
    script = """
import signal, time
n = 0
def count(*_):
    global n
    n += 1
    open("count", "w").write(f"{n}\\n")
signal.signal(signal.SIGUSR1, count)
open("ready", "w").close()
while True:
    time.sleep(0.001)
"""
    with python_script(tmp_path, script) as program:
        until("ready", (tmp_path / "ready").exists)
        for number in range(1, 21):
            with frozen(program.pid, 5.0):
                os.kill(program.pid, signal.SIGUSR1)
            until(f"signal {number}", lambda wanted=number: (tmp_path / "count").exists()
                  and (tmp_path / "count").read_text() == f"{wanted}\n")


def test_flags_and_the_other_engine_are_refused(tmp_path: Path) -> None:
    with sleep(tmp_path, 60) as program, open(os.devnull, "wb") as null:
        with pytest.raises(BadRequest):
            checkpoint(program.pid, null.fileno(), 1, crids=CridCounter(tmp_path / "crid"))
        with pytest.raises(FeatureMissing):
            take(program, tmp_path / "image", engine="kernel")
        program.assert_unharmed()
        assert not (tmp_path / "crid").exists()


def test_a_reader_that_goes_away_and_a_full_device(tmp_path: Path) -> None:
    with sleep(tmp_path, 60) as program:
        read_end, write_end = os.pipe()
        os.close(read_end)
        with pytest.raises(ImageSinkClosed):
            checkpoint(program.pid, write_end, crids=CridCounter(tmp_path / "crid"))
        os.close(write_end)
        with open("/dev/full", "wb", buffering=0) as full, pytest.raises(ImageSinkFull):
            checkpoint(program.pid, full.fileno(), crids=CridCounter(tmp_path / "crid"))
        program.assert_unharmed()
        assert not (tmp_path / "crid").exists()


def test_what_cannot_be_restarted_is_refused_before_the_stop(tmp_path: Path) -> None:
    script = ("import socket, time; s = socket.socket(socket.AF_NETLINK, 3, 12); s.bind((0, 0))\n"
              "open('ready', 'w').close(); time.sleep(60)")
    with python_script(tmp_path, script) as program:
        until("ready", (tmp_path / "ready").exists)
        with pytest.raises(TargetUnsupported) as refused:
            take(program, tmp_path / "image")
        assert [reason.code for reason in refused.value.reasons] == ["fd.socket"]
        assert (tmp_path / "image").stat().st_size == 0


def test_a_commit_that_fails_lets_the_target_run(tmp_path: Path) -> None:
    def fail(_: CheckpointResult) -> None:
        raise OSError("the disk is gone")

    with sleep(tmp_path, 60) as program, (tmp_path / "image").open("wb") as file:
        with pytest.raises(OSError, match="the disk is gone"):
            checkpoint(program.pid, file.fileno(), crids=CridCounter(tmp_path / "crid"),
                       options=CheckpointOptions(after="kill"), commit=fail)  # type: ignore[arg-type]
        program.assert_unharmed()


def test_a_confirmation_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(_: object) -> None:
        raise OSError("the catalog is gone")

    with sleep(tmp_path, 60) as program:
        take(program, tmp_path / "image")
        program.kill()
        for pids in (Pids.ORIGINAL, Pids.NEW):
            with (tmp_path / "image").open("rb") as file, pytest.raises(OSError, match="the catalog is gone"):
                restart(file.fileno(), options=RestartOptions(pids=pids), confirm=fail)
            assert not program.is_there()


def test_a_pid_in_use_is_said_before_anything_is_made(tmp_path: Path) -> None:
    with sleep(tmp_path, 60) as program:
        take(program, tmp_path / "image")
        with (tmp_path / "image").open("rb") as file, pytest.raises(PidInUse, match="sleep"):
            restart(file.fileno())
        program.assert_unharmed()


def test_the_exit_status_of_the_root(tmp_path: Path) -> None:
    script = ("import os, sys, time\nopen('ready', 'w').close()\n"
              "while not os.path.exists('go'): time.sleep(0.01)\nsys.exit(7)")
    with python_script(tmp_path, script) as program:
        until("ready", (tmp_path / "ready").exists)
        take(program, tmp_path / "image")
        program.kill()
        with (tmp_path / "image").open("rb") as file:
            result = restart(file.fileno(), options=RestartOptions(pids=Pids.NEW))
        (tmp_path / "go").touch()
        assert wait_for_root(result) == 7
