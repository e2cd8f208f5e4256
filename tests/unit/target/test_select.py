"""From a configured target to one process."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.errors import BadRequest, TargetAmbiguous, TargetError, TargetNotFound
from crd.target import procfs, select
from tests.support.victims import Program, Victim, until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with Victim("idle", tmp_path_factory.mktemp("idle")) as running:
        yield running


@pytest.fixture
def dead_pid() -> int:
    child = subprocess.Popen(["/bin/true"])
    child.wait()
    return child.pid


def named(name: str, directory: Path) -> Program:
    """A process with a name of its own."""
    shutil.copy("/bin/sleep", directory / name)
    return Program([directory / name, "1000"], directory, name=name)


def test_by_pid(victim: Victim, dead_pid: int) -> None:
    process = select.by_pid(victim.pid)
    assert (process.pid, process.comm, process.uid) == (victim.pid, "idle", os.getuid())
    assert process.start_time == procfs.stat(victim.pid).start_time
    for pid in (dead_pid, 0, -1, 2**31, 2**70):
        with pytest.raises(TargetNotFound):
            select.by_pid(pid)


def test_a_thread_is_no_target(tmp_path: Path) -> None:
    with Victim("counter", tmp_path, 2) as threads, pytest.raises(TargetNotFound):
        select.by_pid(threads.tasks()[1])


def test_a_zombie_is_no_target() -> None:
    child = subprocess.Popen(["/bin/true"])
    until("zombie", lambda: procfs.stat(child.pid).state == "Z")
    with pytest.raises(TargetNotFound):
        select.by_pid(child.pid)
    child.wait()


def test_by_comm(tmp_path: Path) -> None:
    with named("crd-test-one", tmp_path) as one, named("crd-test-two", tmp_path) as two:
        for program in (one, two):
            until("its name", lambda program=program: procfs.stat(program.pid).comm.startswith("crd-test"))
        assert select.by_comm("crd-test-on[e]").pid == one.pid
        with pytest.raises(TargetAmbiguous) as caught:
            select.by_comm("crd-test-.*")
        assert caught.value.details["pids"] == sorted([one.pid, two.pid])
        assert f"pid {two.pid} (crd-test-two)" in caught.value.message
        with pytest.raises(TargetNotFound):
            select.by_comm("crd-test")  # the whole name counts


@pytest.mark.parametrize("expression", ["(", "[", "*", "a" * 201, "(?P<x"])
def test_bad_expressions(expression: str) -> None:
    with pytest.raises(BadRequest):
        select.by_comm(expression)


@pytest.mark.parametrize("form", ["{}", "{}\n", "  {}\r\n", "\t{} \n\n"])
def test_by_pid_file(victim: Victim, tmp_path: Path, form: str) -> None:
    file = tmp_path / "pid"
    file.write_text(form.format(victim.pid))
    assert select.by_pid_file(file).pid == victim.pid


def test_a_stale_pid_file(tmp_path: Path, dead_pid: int) -> None:
    file = tmp_path / "pid"
    file.write_text(f"{dead_pid}\n")
    with pytest.raises(TargetNotFound) as caught:
        select.by_pid_file(file)
    assert "stale" in caught.value.hint
    with pytest.raises(TargetNotFound):
        select.by_pid_file(tmp_path / "missing")


@pytest.mark.parametrize("content", ["", "\n", "0", "-1", "+{}", "{} {}", "0x10", "{}x", "1" * 8,
                                     "{}" + " " * 100 + "7", "\0", "٣", "1e3", "{}.0"])
def test_pid_files_that_hold_something_else(victim: Victim, tmp_path: Path, content: str) -> None:
    file = tmp_path / "pid"
    file.write_text(content.replace("{}", str(victim.pid)))
    with pytest.raises(TargetError, match="does not hold one pid"):
        select.by_pid_file(file)


def test_pid_files_not_to_be_trusted(victim: Victim, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    file.write_text(f"{victim.pid}\n")
    link, fifo = tmp_path / "link", tmp_path / "fifo"
    link.symlink_to(file)
    os.mkfifo(fifo)
    for path in (link, fifo, tmp_path, Path("/dev/zero")):
        with pytest.raises(TargetError):
            select.by_pid_file(path)
    for mode in (0o664, 0o646):
        file.chmod(mode)
        with pytest.raises(TargetError, match="others"):
            select.by_pid_file(file)


@pytest.mark.root
def test_a_stranger_cannot_name_a_process_of_root(victim: Victim, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    file.write_text(f"{victim.pid}\n")
    os.chown(file, 4201, 4201)
    with pytest.raises(TargetError, match="belongs to uid 4201"):
        select.by_pid_file(file)


@pytest.mark.root
def test_a_user_may_name_a_process_of_their_own(tmp_path: Path) -> None:
    with Victim("credentials", tmp_path) as victim:
        file = tmp_path / "pid"
        file.write_text(f"{victim.pid}\n")
        os.chown(file, 4201, 4201)
        assert select.by_pid_file(file).uid == 4201


@pytest.fixture
def slice_(victim: Victim) -> Iterator[Path]:
    """A slice of the hierarchy that systemd would use; what lives in it moves back."""
    mounted = Path("/sys/fs/cgroup")
    root = next(path for path in (mounted / "unified", mounted) if (path / "cgroup.procs").exists())
    made = root / f"crdtest{os.getpid()}.slice"
    made.mkdir()
    yield made
    for path, _, _ in os.walk(made, topdown=False):
        for pid in (Path(path) / "cgroup.procs").read_text().split():
            (root / "cgroup.procs").write_text(pid)
        Path(path).rmdir()


def move(victim: Victim, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for pid in victim.family():
        (directory / "cgroup.procs").write_text(str(pid))


@pytest.mark.root
def test_by_unit_and_by_control_group(victim: Victim, slice_: Path, tmp_path: Path) -> None:
    path = f"/{slice_.name}/web.service"
    for missing in (lambda: select.by_unit("web.service"), lambda: select.by_cgroup(path)):
        with pytest.raises(TargetNotFound):
            missing()
    move(victim, slice_ / "web.service/below")
    assert select.by_unit("web.service").pid == victim.pid
    assert select.by_unit(slice_.name).pid == victim.pid
    assert select.by_cgroup(path).pid == victim.pid
    with pytest.raises(TargetNotFound):
        select.by_cgroup(f"/{slice_.name}/web.serv")
    with Victim("tree", tmp_path) as tree:
        move(tree, slice_ / "web.service")
        with pytest.raises(TargetAmbiguous) as caught:
            select.by_unit("web.service")
        assert caught.value.details["pids"] == sorted([victim.pid, tree.pid]), "and not their children"
        move(victim, slice_ / "another.service")
        assert select.by_unit("web.service").pid == tree.pid


@pytest.mark.root
def test_units_of_another_manager_are_not_meant(victim: Victim, slice_: Path) -> None:
    move(victim, slice_ / "user@1000.service/app.slice/web.service")
    with pytest.raises(TargetNotFound):
        select.by_unit("web.service")
    assert select.by_unit("user@1000.service").pid == victim.pid
