"""What a rollback does to files, and that nothing of it is left half done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.engine.api import CheckpointOptions, Files, RestartOptions, checkpoint, restart
from crd.engine.crid import CridCounter
from crd.engine.userspace.fds import rollback
from crd.errors import ResourceChanged, RestartError
from tests.engine.images import restarted
from tests.support.daemon import BIN
from tests.support.victims import Program, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

USER = 4202
HOLDER = """
import os, sys, time
for name, flags in (("log", os.O_WRONLY | os.O_APPEND), ("data", os.O_RDWR), ("read", os.O_RDONLY)):
    fd = os.open(name, flags)
    if flags == os.O_RDWR:
        os.lseek(fd, 3, os.SEEK_SET)
user = int(sys.argv[1])
with open("/proc/self/comm", "w") as comm:
    comm.write("ready")
if user:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
time.sleep(1000)
"""
LOG, DATA, READ = b"one\ntwo\n", b"0123456789", b"only read\n"


@pytest.fixture
def files() -> Iterator[Path]:
    """A directory that everybody may enter, unlike tmp_path, with three files."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        for file, content in (("log", LOG), ("data", DATA), ("read", READ)):
            (directory / file).write_bytes(content)
            (directory / file).chmod(0o640)
        os.utime(directory / "data", (1_700_000_000, 1_700_000_000))
        yield directory


def taken(directory: Path, user: int = 0, save_files_bytes: int = 1 << 20) -> tuple[Path, Program]:
    """Take an image of a program that has the files open, and kill it."""
    script = directory / "script.py"
    script.write_text(HOLDER)
    program = Program([sys.executable, script, user], directory)
    until("readiness", lambda: program.status().get("Name") == "ready"
          and program.status()["Uid"].split() == [str(user)] * 4)
    path = directory / "image"
    with path.open("wb") as file:
        checkpoint(program.pid, file.fileno(), crids=CridCounter(directory / "crid"),
                   options=CheckpointOptions(method="copy", save_files_bytes=save_files_bytes))
    program.kill()
    return path, program


def listed(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name not in {"image", "crid"}}


def kept(directory: Path, name: str) -> Path:
    [path] = directory.glob(f"{name}.newer-*")
    return path


def test_what_has_grown_is_cut_off_and_what_has_changed_is_put_back(files: Path) -> None:
    image, program = taken(files)
    with program:
        inode = (files / "log").stat().st_ino
        with (files / "log").open("ab") as log:
            log.write(b"three\n")
        (files / "data").write_bytes(b"another")
        (files / "read").write_bytes(b"not ours to put back")
        notes = restarted(image, program, files="rollback").notes
        assert (files / "log").read_bytes() == LOG
        assert (files / "log").stat().st_ino == inode
        assert kept(files, "log").read_bytes() == b"three\n"
        assert (files / "data").read_bytes() == DATA
        assert (files / "data").stat().st_mtime == 1_700_000_000
        assert (files / "data").stat().st_mode & 0o7777 == 0o640
        assert kept(files, "data").read_bytes() == b"another"
        assert (files / "read").read_bytes() == b"not ours to put back"
        assert len(notes) == 2
        [fd] = [fd for fd in Path(f"/proc/{program.pid}/fd").iterdir() if os.readlink(fd) == str(files / "data")]
        assert fd.stat().st_ino == (files / "data").stat().st_ino
        assert "pos:\t3\n" in Path(f"/proc/{program.pid}/fdinfo/{fd.name}").read_text()


def test_what_has_not_changed_is_left_alone(files: Path) -> None:
    image, program = taken(files)
    with program:
        os.utime(files / "data")  # only the time
        before = {path.name: path.stat().st_ino for path in files.iterdir()}
        result = restarted(image, program, files="rollback")
        assert not result.notes
        assert {path.name: path.stat().st_ino for path in files.iterdir()} == before


def test_another_name_of_a_file_leads_to_the_newer_content(files: Path) -> None:
    image, program = taken(files)
    with program:
        os.link(files / "data", files / "name")
        (files / "data").write_bytes(b"another")
        [note] = restarted(image, program, files="rollback").notes
        assert note.endswith("and under its other names")
        assert (files / "name").read_bytes() == b"another"
        assert (files / "data").read_bytes() == DATA


def test_a_file_that_is_missing_is_made_again(files: Path) -> None:
    image, program = taken(files)
    with program:
        (files / "data").unlink()
        restarted(image, program, files="rollback")
        assert (files / "data").read_bytes() == DATA
        assert not [*files.glob("data.newer-*")]


def test_the_content_decides_whether_a_file_has_changed(files: Path) -> None:
    image, program = taken(files, save_files_bytes=0)
    with program:
        for name in ("log", "data"):
            os.utime(files / name)
        restarted(image, program, files="fail")
        program.kill()
        (files / "data").write_bytes(DATA[::-1])
        os.utime(files / "data", (1_700_000_000, 1_700_000_000))
        with pytest.raises(ResourceChanged, match=r"data has changed since the image was taken \(content\)"):
            restarted(image, files="fail")
        with pytest.raises(ResourceChanged, match="the image has no copy of it"):
            restarted(image, files="rollback")


def test_a_log_that_was_rewritten_is_not_cut_off(files: Path) -> None:
    image, program = taken(files, save_files_bytes=0)
    with program:
        (files / "log").write_bytes(b"X" + LOG[1:] + b"three\n")
        with pytest.raises(ResourceChanged, match="the image has no copy of it"):
            restarted(image, files="rollback")


def test_a_large_log_is_known_by_its_end(files: Path) -> None:
    lines = b"".join(b"%d\n" % number for number in range(300_000))
    (files / "log").write_bytes(lines)
    image, program = taken(files, save_files_bytes=0)
    with program:
        with (files / "log").open("ab") as log:
            log.write(b"more\n" * 1000)
        restarted(image, program, files="rollback")
        assert (files / "log").read_bytes() == lines
        assert kept(files, "log").read_bytes() == b"more\n" * 1000


@pytest.mark.parametrize("step", ["fsync", "ftruncate"])
def test_a_rollback_that_fails_leaves_everything_as_it_was(step: str, files: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    image, program = taken(files)
    with program:
        with (files / "log").open("ab") as log:
            log.write(b"three\n")
        (files / "data").write_bytes(b"another")
        before = listed(files)
        ready = False
        whole = getattr(os, step)

        def failing(fd: int, *arguments: int) -> None:
            whole(fd, *arguments)
            if ready and os.readlink(f"/proc/self/fd/{fd}") in {str(files), str(files / "log")}:
                raise OSError(5, "Input/output error")

        def confirm(_: object) -> None:
            nonlocal ready
            ready = True

        monkeypatch.setattr(os, step, failing)
        with image.open("rb") as file, pytest.raises(RestartError, match="Input/output error"):
            restart(file.fileno(), options=RestartOptions(files=Files.ROLLBACK), confirm=confirm)
        assert ready
        monkeypatch.undo()
        assert not program.is_there()
        assert listed(files) == before


def test_a_restart_that_is_called_off_leaves_everything_as_it_was(files: Path) -> None:
    image, program = taken(files)
    with program:
        with (files / "log").open("ab") as log:
            log.write(b"three\n")
        (files / "data").write_bytes(b"another")
        before = listed(files)

        def call_off(_: object) -> None:
            assert kept(files, "log").read_bytes() == b"three\n"  # all is ready, and nothing done
            assert (files / "data").read_bytes() == b"another"
            raise InterruptedError

        with image.open("rb") as file, pytest.raises(InterruptedError):
            restart(file.fileno(), options=RestartOptions(files=Files.ROLLBACK), confirm=call_off)
        assert listed(files) == before


def test_killed_at_any_step_each_file_is_whole(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die after each system call of the end in turn: a name leads to the old content or to the new one."""
    image, program = taken(files)
    with program:
        for step in ("confirm", "rename", "fsync", "ftruncate"):
            (files / "log").write_bytes(LOG + b"three\n")
            (files / "data").write_bytes(b"another")
            child = os.fork()
            if not child:
                _die_at(step, image)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
            until("end of the tasks", lambda: not program.is_there())
            log, data = (files / "log").read_bytes(), (files / "data").read_bytes()
            assert log in {LOG, LOG + b"three\n"}, step
            assert data in {DATA, b"another"}, step
            everything = b"".join(path.read_bytes() for path in files.glob("*.newer-*")) + log + data
            assert b"three" in everything, step
            assert b"another" in everything, step
            for path in files.glob("*.newer-*"):
                path.unlink()


def _die_at(step: str, image: Path) -> None:
    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def confirm(_: object) -> None:
        if step == "confirm":
            die()
        if step == "rename":
            whole = rollback._Beside.rename
            rollback._Beside.rename = lambda self, how: (whole(self, how), die())  # type: ignore[method-assign]
        if step == "ftruncate":
            cut = os.ftruncate
            os.ftruncate = lambda fd, size: (cut(fd, size), die())  # type: ignore[assignment]
        if step == "fsync":
            os.fsync = die  # type: ignore[assignment]

    with image.open("rb") as file:
        restart(file.fileno(), options=RestartOptions(files=Files.ROLLBACK), confirm=confirm)
    os._exit(1)


def test_a_link_in_the_place_of_a_file_is_not_followed(files: Path) -> None:
    image, program = taken(files)
    with program:
        victim = files / "victim"
        victim.write_bytes(b"precious")
        (files / "data").unlink()
        (files / "data").symlink_to(victim)
        with pytest.raises(ResourceChanged, match="no longer a regular file"):
            restarted(image, files="rollback")
        assert victim.read_bytes() == b"precious"


def test_a_user_is_put_back_only_what_that_user_may_write(files: Path) -> None:
    for name in ("log", "data", "read"):
        os.chown(files / name, USER, USER)
    image, program = taken(files, USER)
    with program:
        (files / "data").write_bytes(b"another")
        before = listed(files)
        with pytest.raises(ResourceChanged, match="Permission denied"):
            restarted(image, files="rollback")  # into root's directory
        assert listed(files) == before
        files.chmod(0o777)
        restarted(image, program, files="rollback")
        assert (files / "data").read_bytes() == DATA
        assert (files / "data").stat().st_uid == USER
        assert kept(files, "data").stat().st_uid == USER


def test_files_are_kept_for_as_long_as_nobody_asks_for_more(files: Path) -> None:
    image, program = taken(files)
    with program:
        (files / "data").write_bytes(b"another")
        before = listed(files)
        restarted(image, program)
        assert listed(files) == before


def test_the_command_says_what_was_put_back(files: Path) -> None:
    image, program = taken(files)
    with program:
        (files / "data").write_bytes(b"another")
        done = subprocess.run([BIN / "crd", "restart", "-i", image, "--files", "rollback"],
                              capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        program.restarted_as(int(done.stdout))
        assert "data has the content that it had in the image" in done.stderr
