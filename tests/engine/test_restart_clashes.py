"""What stands in the way of a restart is named before anything is made, and an image is no way around permissions."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.engine.api import restart
from crd.engine.userspace import numbers
from crd.errors import AccessDenied, PidInUse, ResourceChanged
from crd.native.vessel import spawn_vessel
from crd.target import procfs
from tests.engine.images import as_user, restarted, tail_of, taken
from tests.engine.programs import compiled, interpreted
from tests.support.victims import Program, sleep, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

USER = 4201


@contextmanager
def nothing_made(program: Program) -> Iterator[None]:
    """No process takes the program's number; there are as many descriptors as before."""
    fds = os.listdir("/proc/self/fd")
    yield
    assert not program.is_there()
    assert os.listdir("/proc/self/fd") == fds


@contextmanager
def ended(pid: int) -> Iterator[int]:
    """A child that is killed in the end."""
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# --- numbers ---------------------------------------------------------------------------------------------------


@contextmanager
def next_number(number: int) -> Iterator[None]:
    """Let the next task have a number, unless another is quicker; those after it go on from where they were.

    Else they would be given numbers of programs that somebody else has ended just now, and is about to bring back.
    """
    last = Path("/proc/sys/kernel/ns_last_pid")
    before = last.read_text()
    last.write_text(str(number - 1))
    try:
        yield
    finally:
        last.write_text(before)


def test_a_thread_has_the_number(tmp_path: Path) -> None:
    with sleep(tmp_path, 60) as program:
        image = taken(program)
        done = threading.Event()
        threads: list[threading.Thread] = []
        try:
            while not threads or threads[-1].native_id != program.pid:
                threads.append(threading.Thread(target=done.wait))
                with next_number(program.pid):
                    threads[-1].start()
            with pytest.raises(PidInUse, match=f"thread of pid {os.getpid()}"):
                restarted(image)
        finally:
            done.set()
            for thread in threads:
                thread.join()


def spawned(number: int, group: int) -> int:
    """Start a process in a group, which it leads if that is 0, under a number if that is not 0."""
    while True:
        with next_number(number) if number else nullcontext():
            pid = os.posix_spawn("/bin/sleep", ["sleep", "600"], os.environ, setpgroup=group)
        if number in {0, pid}:
            return pid
        os.kill(pid, signal.SIGKILL)  # another process was quicker to take the number
        os.waitpid(pid, 0)


def test_a_group_whose_leader_has_ended_has_the_number(tmp_path: Path) -> None:
    with sleep(tmp_path, 60) as program:
        image = taken(program)
        leader = spawned(program.pid, 0)
        with ended(spawned(0, leader)) as member:
            os.kill(leader, signal.SIGKILL)
            os.waitpid(leader, 0)
            assert not program.is_there()
            with pytest.raises(PidInUse, match=f"process group or session of pid {member}") as error:
                restarted(image)
            assert error.value.hint
        restarted(image, program)


def test_a_zombie_is_waited_for_and_its_parent_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sleep(tmp_path, 60) as program:
        image = taken(program)
        zombie = spawn_vessel(program.pid)
        os.kill(zombie, signal.SIGKILL)
        monkeypatch.setattr(numbers, "PATIENCE_SECONDS", 0.1)
        with pytest.raises(PidInUse, match=rf"not yet reaped by pid {os.getpid()} \("):
            restarted(image)
        monkeypatch.undo()
        reaper = threading.Timer(0.2, os.waitpid, (zombie, 0))
        reaper.start()
        restarted(image, program)
        reaper.join()


def test_a_number_that_was_taken_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with interpreted(tmp_path, "import threading\nthreading.Thread(target=rest).start()\nrest()") as program:
        until("two threads", lambda: len(program.tasks()) == 2)
        tid = program.tasks()[1]
        image = taken(program)
        with monkeypatch.context() as blind, nothing_made(program), ended(spawn_vessel(tid)):
            waited = numbers.await_free
            blind.setattr("crd.engine.userspace.plan.numbers.await_free", lambda wanted, **besides:
                          waited(wanted, **besides) if besides else None)
            with pytest.raises(PidInUse, match=f"pid {tid} is in use by"):
                restarted(image)
        restarted(image, program)


# --- files -----------------------------------------------------------------------------------------------------

READER = """
import os
fd = os.open("data", os.O_RDWR | os.O_CREAT, 0o600)
os.write(fd, b"content")
rest()
"""


def test_an_open_file_is_missing(tmp_path: Path) -> None:
    with interpreted(tmp_path, READER) as program:
        image = taken(program)
        (tmp_path / "data").unlink()
        with nothing_made(program), pytest.raises(ResourceChanged, match="data: No such file"):
            restarted(image)


def test_an_open_file_has_changed(tmp_path: Path) -> None:
    with interpreted(tmp_path, READER) as program:
        image = taken(program)
        (tmp_path / "data").write_text("more content")
        with nothing_made(program), pytest.raises(ResourceChanged, match=r"data has changed .*\(size\)"):
            restarted(image, files="fail")
        restarted(image, program)


def test_a_fifo_where_a_file_was_does_not_block(tmp_path: Path) -> None:
    with interpreted(tmp_path, READER) as program:
        image = taken(program)
        (tmp_path / "data").unlink()
        os.mkfifo(tmp_path / "data")
        with nothing_made(program), pytest.raises(ResourceChanged, match="same kind of file"):
            restarted(image)


def test_the_working_directory_is_missing(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    with interpreted(tmp_path, "import os\nos.chdir('place')\nopen('../ready', 'w').close()\nrest()") as program:
        until("the change", lambda: os.readlink(f"/proc/{program.pid}/cwd").endswith("place"))
        image = taken(program)
        shutil.rmtree(tmp_path / "place")
        with nothing_made(program), pytest.raises(ResourceChanged, match=r"working directory .*place is missing"):
            restarted(image)


def test_a_library_was_replaced(tmp_path: Path) -> None:
    library = tmp_path / "library.so"
    subprocess.run(["gcc", "-shared", "-x", "c", "-o", library, "-"], input=b"int answer = 42;", check=True)
    with interpreted(tmp_path, f"import ctypes\nctypes.CDLL({str(library)!r})\nrest()") as program:
        image = taken(program)
        content, before = library.read_bytes(), library.stat()
        library.unlink()
        library.write_bytes(content)
        with nothing_made(program), pytest.raises(ResourceChanged, match=r"library.so has changed .*modification time"):
            restarted(image)
        os.utime(library, ns=(before.st_atime_ns, before.st_mtime_ns))  # a copy is as good
        restarted(image, program)


def test_the_program_was_replaced(tmp_path: Path) -> None:
    shutil.copy("/bin/sleep", tmp_path / "program")
    with Program([tmp_path / "program", "60"], tmp_path) as program:
        until("its start", lambda: os.readlink(f"/proc/{program.pid}/exe").endswith("/program"))
        image = taken(program)
        (tmp_path / "program").unlink()
        shutil.copy("/bin/cat", tmp_path / "program")
        with nothing_made(program), pytest.raises(ResourceChanged, match="program has changed"):
            restarted(image)


@pytest.mark.parametrize("kind", ["flock", "posix"])
def test_somebody_else_has_the_lock(tmp_path: Path, kind: str) -> None:
    lock = {"flock": "fcntl.flock(fd, fcntl.LOCK_EX)", "posix": "fcntl.lockf(fd, fcntl.LOCK_EX, 10, 5)"}[kind]
    source = f"import fcntl, os\nfd = os.open('data', os.O_RDWR | os.O_CREAT)\n{lock}\nrest()"
    with interpreted(tmp_path, source) as program:
        image = taken(program)
        with (tmp_path / "data").open("r+") as file:
            if kind == "flock":
                fcntl.flock(file, fcntl.LOCK_SH)
            else:
                fcntl.lockf(file, fcntl.LOCK_SH, 100, 0)
            with nothing_made(program), pytest.raises(ResourceChanged, match=rf"data is locked by pid {os.getpid()} "):
                restarted(image)
        restarted(image, program)
        with (tmp_path / "data").open("r+") as file, pytest.raises(BlockingIOError):
            (fcntl.flock if kind == "flock" else fcntl.lockf)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- rights ----------------------------------------------------------------------------------------------------

BECOME_USER = f"""
import os
def rest():
    import time
    while True: time.sleep(0.01)
open("ready", "w").close()
os.mkdir("private", 0o700)
os.chdir("private")
secret = os.open("secret", os.O_RDWR | os.O_CREAT, 0o600)
os.chown("..", {USER}, {USER})
own = os.open("../own", os.O_RDWR | os.O_CREAT, 0o600)
os.fchown(own, {USER}, {USER})
os.setgroups([])
os.setresgid({USER}, {USER}, {USER})
os.setresuid({USER}, {USER}, {USER})
rest()
"""


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that everybody may enter, unlike those above tmp_path."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def user_program(public_path: Path) -> Iterator[Program]:
    """A process of USER that was root's: it holds a file and a directory that USER may not enter."""
    program = interpreted(public_path, BECOME_USER)
    with program:
        until("the last step", lambda: program.status()["Uid"].split()[0] == str(USER))
        yield program


def test_what_was_opened_before_rights_were_dropped_is_opened_again(user_program: Program) -> None:
    tmp_path = user_program.directory
    restarted(taken(user_program), user_program)
    assert user_program.status()["Uid"].split() == [str(USER)] * 4
    links = {os.readlink(path) for path in Path(f"/proc/{user_program.pid}/fd").iterdir()}
    assert {str(tmp_path / "private" / "secret"), str(tmp_path / "own")} <= links
    assert os.readlink(f"/proc/{user_program.pid}/cwd") == str(tmp_path / "private")


@pytest.mark.parametrize("how", [os.symlink, os.link])
def test_an_image_opens_nothing_that_its_user_may_not(user_program: Program, how: object) -> None:
    tmp_path = user_program.directory
    treasure = tmp_path / "treasure"
    treasure.write_text("of root")
    treasure.chmod(0o600)
    image = taken(user_program)
    (tmp_path / "own").unlink()
    how(treasure, tmp_path / "own")  # type: ignore[operator]
    with nothing_made(user_program), pytest.raises(ResourceChanged, match=r"own is another file .* may not open it"):
        restarted(image)


def test_a_link_leads_to_no_directory_that_the_user_may_not_enter(user_program: Program) -> None:
    tmp_path = user_program.directory
    treasury = tmp_path / "treasury"
    treasury.mkdir(0o700)
    image = taken(user_program)
    secret = tmp_path / "private" / "secret"
    shutil.move(secret, tmp_path / "moved")
    (tmp_path / "private").rmdir()
    (tmp_path / "private").symlink_to(treasury)
    shutil.move(tmp_path / "moved", treasury / "secret")  # the file is the very same
    with nothing_made(user_program), pytest.raises(ResourceChanged, match="private: Too many levels of symbolic links"):
        restarted(image)


def test_only_root_restarts_what_had_more_than_the_caller(tmp_path: Path) -> None:
    with sleep(tmp_path, 60) as program:
        image = taken(program)
        image.chmod(0o644)

        def attempt() -> None:
            file = image.open("rb")
            with as_user(USER), pytest.raises(AccessDenied, match="uid 0"):
                restart(file.fileno())

        with nothing_made(program):
            tail_of(attempt)


# --- numbers are free at once ------------------------------------------------------------------------------------


def test_many_threads_and_a_busy_machine_cost_one_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with compiled(tmp_path, MANY_THREADS) as program:
        tids = program.tasks()
        assert len(tids) == 65
        image = taken(program)
        looks, everybody = [], procfs.pids
        with monkeypatch.context() as counting:
            counting.setattr(procfs, "pids", lambda: looks.append("at everybody") or everybody())
            numbers.await_free(tids)
        assert len(looks) == 1
        restarted(image, program)
        assert program.tasks() == tids


MANY_THREADS = """
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

static void *rest(void *argument) { pause(); return argument; }

int main(void)
{
    pthread_t thread;

    for (int i = 0; i < 64; i++)
        pthread_create(&thread, NULL, rest, NULL);
    fclose(fopen("ready", "w"));
    for (;;)
        pause();
}
"""
