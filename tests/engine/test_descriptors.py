"""What descriptors are open on: states that cannot be saved are refused with the reason, and the program runs on; a
restart gives nobody what is not his, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.engine.api import restart
from crd.engine.userspace import threads
from crd.engine.userspace.fds import socket_options
from crd.errors import ResourceChanged, RestartError, RestartUnsupported, TargetUnsupported
from crd.image.sockets import SocketOption
from tests.engine.images import restarted, restarted_elsewhere, taken
from tests.engine.programs import interpreted
from tests.support.victims import Victim, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.victims import Program

pytestmark = pytest.mark.root

PRELUDE = """
import ctypes, os, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
"""


@pytest.mark.parametrize(("source", "code", "said"), [
    ("fd = libc.inotify_init1(0); libc.inotify_add_watch(fd, b'.', 0x100); open('new', 'w')", "fd.inotify", "not read"),
    (("fd = libc.inotify_init1(0); open('x', 'w'); libc.inotify_add_watch(fd, b'x', 2); held = os.open('x', 0)\n"
      "os.unlink('x')"), "fd.inotify", "does not tell"),
])
def test_states_that_only_the_stop_shows(tmp_path: Path, source: str, code: str, said: str) -> None:
    with interpreted(tmp_path, f"{PRELUDE}{source}\nrest()") as program:
        with pytest.raises(TargetUnsupported) as refused:
            taken(program)
        assert [reason.code for reason in refused.value.reasons] == [code]
        assert said in refused.value.reasons[0].reason
        program.assert_unharmed()


USER = 4201
BECOME_USER = f"""
os.setgroups([])
os.setresgid({USER}, {USER}, {USER})
os.setresuid({USER}, {USER}, {USER})
while True: time.sleep(0.01)
"""


@contextmanager
def of_user(source: str) -> Iterator[Program]:
    """A process that was root's, in a directory that everybody may enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        source = f"{PRELUDE}import time\n{source}\nopen('ready', 'w').close()\n{BECOME_USER}"
        with interpreted(Path(name), source) as program:
            until("the last step", lambda: program.status()["Uid"].split()[0] == str(USER))
            yield program


def links(program: Program) -> set[str]:
    return {os.readlink(path) for path in Path(f"/proc/{program.pid}/fd").iterdir()}


def test_a_deleted_file_whose_name_is_taken_by_now(tmp_path: Path) -> None:
    with interpreted(tmp_path, f"{PRELUDE}fd = os.open('x', os.O_RDWR | os.O_CREAT)\nos.write(fd, b'old')\n"
                               "os.unlink('x')\nrest()") as program:
        image = taken(program)
        (tmp_path / "x").write_text("new")
        before = set(os.listdir(tmp_path))
        restarted(image, program)
        assert set(os.listdir(tmp_path)) == before
        assert (tmp_path / "x").read_text() == "new"
        [link] = [path for path in Path(f"/proc/{program.pid}/fd").iterdir() if "/x" in os.readlink(path)]
        assert link.read_text() == "old"


def test_a_deleted_file_where_its_user_may_make_none() -> None:
    with of_user("os.mkdir('private', 0o700); fd = os.open('private/x', os.O_RDWR | os.O_CREAT, 0o4755)\n"
                 "os.write(fd, b'old'); os.fchmod(fd, 0o4755); os.unlink('private/x')") as program:
        image = taken(program)
        result = restarted(image, program)
        assert any("shows another name" in note for note in result.notes)
        [link] = [path for path in Path(f"/proc/{program.pid}/fd").iterdir() if "/private/" in os.readlink(path)]
        assert link.read_text() == "old"
        assert link.stat().st_uid == USER, "a set-uid file of root's would be a gift"
        assert os.listdir(program.directory / "private") == []


def test_a_deleted_fifo_whose_name_is_taken_by_now(tmp_path: Path) -> None:
    source = f"{PRELUDE}os.mkfifo('x'); fd = os.open('x', os.O_RDWR); os.unlink('x')\nrest()"
    with interpreted(tmp_path, source) as program:
        image = taken(program)
        (tmp_path / "x").write_text("new")
        before = set(os.listdir(tmp_path))
        restarted(image, program)
        assert set(os.listdir(tmp_path)) == before


def test_what_another_process_keeps_in_a_named_pipe_is_not_doubled(tmp_path: Path) -> None:
    source = f"{PRELUDE}os.mkfifo('x'); fd = os.open('x', os.O_RDWR); os.write(fd, b'in flight')\nrest()"
    with interpreted(tmp_path, source) as program:
        outside = os.open(tmp_path / "x", os.O_RDONLY | os.O_NONBLOCK)
        result = restarted(taken(program), program)
        assert any("keeps what is in it" in note for note in result.notes)
        assert os.read(outside, 100) == b"in flight"
        os.close(outside)


@pytest.mark.parametrize("access", ["RDONLY", "RDWR"])
def test_no_other_named_pipe_is_opened_than_its_user_may(access: str) -> None:
    with of_user(f"os.mkfifo('x'); os.chown('x', {USER}, {USER}); os.chown('.', {USER}, {USER})\n"
                 f"fd = os.open('x', os.O_{access} | os.O_NONBLOCK)") as program:
        image = taken(program)
        path = program.directory / "x"
        path.rename(program.directory / "old")
        os.mkfifo(path, 0o600)  # of root's
        fds = os.listdir("/proc/self/fd")
        with pytest.raises(ResourceChanged, match="x: Permission denied"):
            restarted(image)
        assert os.listdir("/proc/self/fd") == fds
        os.chown(path, USER, USER)
        restarted(image, program)
        path.unlink()
        program.kill()
        with pytest.raises(ResourceChanged, match="no named pipe"):
            restarted(image)


LISTENER = "s = socket.socket(socket.AF_UNIX); s.bind('x'); s.listen(3)"


def test_a_socket_whose_name_somebody_else_has(tmp_path: Path) -> None:
    with interpreted(tmp_path, f"{PRELUDE}{LISTENER}\nrest()") as program:
        image = taken(program)
        path = tmp_path / "x"
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            with pytest.raises(ResourceChanged, match="x is in use by another process"):
                restarted(image)
        path.unlink()
        path.write_text("of somebody else")
        with pytest.raises(ResourceChanged, match="in the way"):
            restarted(image)
        path.unlink()
        restarted(image, program)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


@pytest.mark.parametrize("given", ["x.tmp", "./x.tmp", "run/x.tmp", "{directory}/x.tmp"])
def test_a_socket_that_was_renamed_after_it_was_bound(tmp_path: Path, given: str) -> None:
    (tmp_path / "run").mkdir()
    name = given.format(directory=tmp_path)
    path = (tmp_path / name).with_name("x")
    source = f"import os\ns = socket.socket(socket.AF_UNIX); s.bind({name!r}); os.rename({name!r}, {str(path)!r})"
    with interpreted(tmp_path, f"{PRELUDE}{source}; s.listen(3)\nrest()") as program:
        image = taken(program)
        (tmp_path / name).write_text("of somebody else")
        with pytest.raises(ResourceChanged, match="which was bound there and renamed"):
            restarted(image)
        (tmp_path / name).unlink()
        restarted(image, program)
        assert not (tmp_path / name).exists()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            assert client.getpeername() == name


def test_a_restart_that_fails_leaves_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with interpreted(tmp_path, f"{PRELUDE}{LISTENER}\nrest()") as program:
        image = taken(program)
        fds = os.listdir("/proc/self/fd")
        made = []

        def fail(*_: object, **__: object) -> None:
            made.append((tmp_path / "x").is_socket())
            raise RestartError("the machine is on fire")

        with monkeypatch.context() as broken:
            broken.setattr(threads, "make", fail)
            with pytest.raises(RestartError, match="fire"):
                restarted(image)
        assert made == [True]
        assert not (tmp_path / "x").exists()
        assert os.listdir("/proc/self/fd") == fds
        restarted(image, program)


def test_no_socket_appears_where_its_user_may_make_none() -> None:
    with of_user(f"os.mkdir('private', 0o700); os.chdir('private'); {LISTENER}; os.chdir('..')") as program:
        image = taken(program)
        with pytest.raises(ResourceChanged, match="Permission denied"):
            restarted(image)


def test_datagrams_go_to_whoever_has_the_name_now(tmp_path: Path) -> None:
    source = ("import time\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect('log'); s.send(b'one')\n"
              "open('ready', 'w').close()\nwhile not os.path.exists('go'): time.sleep(0.01)\ns.send(b'two')\nrest()")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log"))
        with interpreted(tmp_path, PRELUDE + source) as program:
            restarted(taken(program), program)
            (tmp_path / "go").touch()
            assert [log.recv(10), log.recv(10)] == [b"one", b"two"]


def test_an_option_that_crd_does_not_save_is_not_set() -> None:
    attach_filter = SocketOption(level=socket.SOL_SOCKET, name=26, bytes=16, low=1, high=0)
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(RestartError, match="option 26"):
        socket_options.restart(sock, [attach_filter])


@pytest.mark.parametrize("name", ["events", "epolls", "watches", "netlinks", "multicasts", "unnamed", "named",
                                  "fifos", "locks", "unixes", "inets", "terminals", "connections"])
def test_they_are_the_same_in_a_namespace_of_their_own(tmp_path: Path, name: str) -> None:
    with Victim(name, tmp_path) as victim:
        assert restarted_elsewhere(taken(victim), victim, "--pidns")["notes"] == []
        victim.verify()


@pytest.mark.parametrize("pids", ["--pidns", "--new-pids"])
def test_a_copy_beside_the_living_original_leaves_it_its_shared_memory(tmp_path: Path, pids: str) -> None:
    with Victim("named", tmp_path) as victim:
        original = victim.pid
        result = restarted_elsewhere(taken(victim, kill=False), victim, pids)
        try:
            assert len(result["notes"]) == 2, result["notes"]
            assert all("stays without a name" in note for note in result["notes"])
        finally:
            victim.kill()
        victim.pid = original
        victim.verify()


def names_in_shm(victim: Victim) -> set[str]:
    """Return the names of the victim's shared memory and semaphores, and what crd made beside them."""
    return {name for name in os.listdir("/dev/shm") if f"-{victim.pid}" in name}


@pytest.mark.parametrize("there", [True, False])
def test_shared_memory_has_the_name_of_the_original_only_when_the_task_lives(tmp_path: Path, *, there: bool) -> None:
    def refuse(_: object) -> None:
        raise RestartError("not today")

    with Victim("named", tmp_path) as victim:
        image = taken(victim)
        name = Path(f"/dev/shm/crd-victim-{victim.pid}")
        if not there:
            name.unlink()
        before, names = there and name.stat().st_ino, names_in_shm(victim)
        with image.open("rb") as file, pytest.raises(RestartError, match="not today"):
            restart(file.fileno(), confirm=refuse)
        until("its end", lambda: not victim.is_there())
        assert names_in_shm(victim) == names
        assert before == (there and name.stat().st_ino)
        restarted(image, victim)
        assert before != name.stat().st_ino
        victim.verify()


def test_a_port_that_somebody_else_has(tmp_path: Path) -> None:
    source = "s = socket.create_server(('127.0.0.1', 0)); open('port', 'w').write(str(s.getsockname()[1]))"
    with interpreted(tmp_path, f"{PRELUDE}{source}\nrest()") as program:
        image = taken(program)
        port = int((tmp_path / "port").read_text())
        fds = os.listdir("/proc/self/fd")
        with socket.create_server(("127.0.0.1", port)):
            child = os.fork()
            if not child:
                time.sleep(60)
                os._exit(0)
            try:
                with pytest.raises(ResourceChanged, match=rf"port {port}: Address already in use, by .*pid {child} "):
                    restarted(image)
            finally:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        assert os.listdir("/proc/self/fd") == fds
        restarted(image, program)
        with socket.create_connection(("127.0.0.1", port)):
            pass


def test_no_privileged_port_for_a_user_without_privileges() -> None:
    with of_user("s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.77', 77))") as program:
        image = taken(program)
        with pytest.raises(RestartUnsupported, match=f"port 77 is not for the user of the task .uid {USER}"):
            restarted(image)
