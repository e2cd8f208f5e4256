"""``crctl run``: checkpoint and restart as system calls on this very kernel, served by a real daemon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.api.client import Client
from crd.errors import BadRequest
from tests.engine.callers import GOES_BACK, SAVES_ITSELF
from tests.support.daemon import BIN, RunningDaemon, eventually
from tests.support.served import compiled
from tests.support.victims import Program, python_script, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

SAVES_ITSELF_TWICE = SAVES_ITSELF.replace("for (;;)\n        pause", """while (access("again", F_OK))
        usleep(1000);
    printf("%ld %ld\\n", checkpoint(0, image("second"), 0), ++steps);
    for (;;)
        pause""")


@contextmanager
def under_crctl_run(daemon: RunningDaemon, directory: Path, *words: str | Path,
                    options: tuple[str, ...] = ()) -> Iterator[Program]:
    with Program([BIN / "crctl", "run", "--socket", daemon.socket, *options, "--", *words], directory) as program:
        yield program


def lines(program: Program) -> list[str]:
    return program.file("stdout").read_text().splitlines()


def test_saved_killed_restarted_and_saved_again(daemon: RunningDaemon, tmp_path: Path) -> None:
    with under_crctl_run(daemon, tmp_path, compiled(tmp_path, SAVES_ITSELF_TWICE)) as program:
        until("the first return", lambda: lines(program) == ["1 42"])
        eventually("the call to be counted", lambda: daemon.metrics()['crd_served_calls_total{result="done"}'] == 1)
        program.kill()
        crid = daemon.crctl("import", str(tmp_path / "image"))["crid"]
        request = daemon.crctl("restart", str(crid), "--wait")
        assert request["root_pid"] == program.pid
        until("the second return", lambda: lines(program) == ["0 42"])
        (tmp_path / "again").touch()
        until("a crid for who was restarted", lambda: lines(program)[1:] == [f"{crid + 1} 43"])
        program.assert_unharmed()


def test_without_the_daemon_it_runs_on_and_the_call_is_not_there(daemon: RunningDaemon, tmp_path: Path) -> None:
    with under_crctl_run(daemon, tmp_path, compiled(tmp_path, SAVES_ITSELF_TWICE)) as program:
        until("the first return", lambda: lines(program) == ["1 42"])
        daemon.stop(signal.SIGKILL)
        (tmp_path / "again").touch()
        until("ENOSYS", lambda: lines(program)[1:] == ["-1 43"])
        program.assert_unharmed()


def test_the_program_is_what_crctl_becomes(daemon: RunningDaemon, tmp_path: Path) -> None:
    script = ("echo $$; grep SigIgn /proc/$$/status; ls -l /proc/$$/fd | grep -c seccomp; "
              f"{BIN / 'crctl'} run --socket {daemon.socket} -- grep Seccomp_filters /proc/self/status; exit 42")
    with under_crctl_run(daemon, tmp_path, "/bin/sh", "-c", script) as program:
        assert os.waitstatus_to_exitcode(os.waitpid(program.pid, 0)[1]) == 42
        pid, ignored, listeners, filters = lines(program)
        assert (pid, listeners, filters) == (str(program.pid), "0", "Seccomp_filters:\t1")
        of_python = 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1
        assert not int(ignored.split()[1], 16) & of_python


@pytest.mark.parametrize(("words", "status"), [(("no-such-program",), 2), (("/dev/null",), 2)])
def test_what_cannot_be_started(daemon: RunningDaemon, words: tuple[str, ...], status: int) -> None:
    done = daemon.run_crctl("run", "--", *words)
    assert done.returncode == status
    assert f"there is no program {words[0]}" in done.stderr


def test_no_daemon_no_start(tmp_path: Path) -> None:
    daemon = RunningDaemon(tmp_path)
    done = daemon.run_crctl("run", "--", "touch", str(tmp_path / "started"))
    assert done.returncode == 10
    assert not (tmp_path / "started").exists()


def test_the_daemon_takes_no_other_descriptor_for_a_listener(daemon: RunningDaemon) -> None:
    script = ("from crd.api.client import Client; from pathlib import Path; import sys\n"
              f"daemon = Client(Path({str(daemon.socket)!r}))\n"
              "for number in (1, 99, -1):\n"
              "    try: daemon.call('Serve', listener=number)\n"
              "    except Exception as error: print(error.code)\n")

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["api.bad-request"] * 3


def test_listeners_go_with_their_programs(daemon: RunningDaemon, tmp_path: Path) -> None:
    assert daemon.process is not None
    descriptors = Path(f"/proc/{daemon.process.pid}/fd")

    def listeners() -> int:
        found = 0
        for descriptor in descriptors.iterdir():
            with suppress(FileNotFoundError):  # it was closed meanwhile
                found += str(descriptor.readlink()) == "anon_inode:seccomp notify"
        return found

    with under_crctl_run(daemon, tmp_path, "/bin/sleep", "1000") as program:
        until("its start", lambda: program.status().get("Name") == "sleep")
        assert listeners() == 1
    eventually("the listener to be closed", lambda: listeners() == 0)


def test_a_program_that_goes_back_to_its_own_image(daemon: RunningDaemon, tmp_path: Path) -> None:
    with under_crctl_run(daemon, tmp_path, compiled(tmp_path, GOES_BACK)) as program:
        assert os.waitstatus_to_exitcode(os.waitpid(program.pid, 0)[1]) == 0
        until("the same number again", lambda: lines(program) == ["0"])
        until("its rest", (tmp_path / "ready").exists)
        program.assert_unharmed()
        assert program.status()["Seccomp_filters"] == "1"


SAVES_BY_THE_SOCKET = """
from pathlib import Path
from crd import selfckpt
print(selfckpt.save(tag="mine", socket=Path({socket!r})), flush=True)
open("ready", "w").close()
while True:
    __import__("time").sleep(0.01)
"""


def test_a_library_call_by_the_socket_without_a_filter(daemon: RunningDaemon, tmp_path: Path) -> None:
    with python_script(tmp_path, SAVES_BY_THE_SOCKET.format(socket=str(daemon.socket))) as program:
        until("the image", (tmp_path / "ready").exists)
        [image] = daemon.crctl("images")
        assert lines(program) == [str(image["crid"])]
        assert image["tags"] == ["mine"]
        program.kill()
        (tmp_path / "ready").unlink()
        assert daemon.crctl("restart", str(image["crid"]), "--wait")["root_pid"] == program.pid
        until("the second return", (tmp_path / "ready").exists)
        assert lines(program) == ["0"]
        program.assert_unharmed()
        assert not any("socket" in str(fd.readlink()) for fd in Path(f"/proc/{program.pid}/fd").iterdir())


def test_only_its_own_connection_is_left_out(daemon: RunningDaemon) -> None:
    with Client(daemon.socket) as client, pytest.raises(BadRequest, match="its own pid"):
        client.call("Checkpoint", pid=1, connection=0)


def test_a_target_from_the_start(daemon: RunningDaemon, tmp_path: Path) -> None:
    options = ("--target", "mine", "--every", "1s")
    with under_crctl_run(daemon, tmp_path, "/bin/sleep", "1000", options=options) as program:
        images = eventually("an image by the schedule", lambda: daemon.crctl("images", "mine"))
        assert (images[-1]["pid"], images[-1]["target"]) == (program.pid, "mine")
        done = daemon.run_crctl("run", *options, "--", "touch", str(tmp_path / "started"))
        assert done.returncode == 14
        assert not (tmp_path / "started").exists()
        assert daemon.run_crctl("run", "--target", "other", "--", "true").returncode == 2
