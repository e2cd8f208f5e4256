"""Terminals through the daemon: programs come back on one that is held for them, and whoever may sits down at it."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.target import procfs
from tests.e2e.test_outside_terminals import Screen, children
from tests.support.daemon import BIN, Refused, RunningDaemon, eventually
from tests.support.users import NOBODY, call_as, opened_to_others, run_as
from tests.support.victims import VICTIMS, build

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

USER = 65533
WINDOW = struct.pack("4H", 22, 77, 0, 0)
FOREGROUND_GROUP = 8
"""proc_pid_stat(5): of the terminal that the process has."""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    opened_to_others(tmp_path)
    with RunningDaemon(tmp_path, "[api]\npublic = true\n") as running:
        yield running
        for entry in Path("/proc").glob("[0-9]*"):  # what was restarted is nobody's child here
            with suppress(OSError):
                if (entry / "cwd").readlink() == tmp_path and (entry / "exe").readlink().name in {"bash", "seated"}:
                    os.kill(int(entry.name), signal.SIGKILL)


def checkpoint(daemon: RunningDaemon, pid: int, *words: str) -> str:
    return str(daemon.crctl("checkpoint", "--pid", str(pid), *words)["crid"])


def restart(daemon: RunningDaemon, crid: str, *words: str) -> int:
    return int(daemon.crctl("restart", crid, "--wait", *words)["root_pid"])


def seat(daemon: RunningDaemon, *words: str, rows: int = 30) -> Screen:
    """Run crctl on a terminal of its own, with 90 columns."""
    screen = Screen(daemon.home, "bash", "--norc", "--noprofile")
    screen.type(f"stty rows {rows} columns 90; exec {BIN / 'crctl'} --socket {daemon.socket} {' '.join(words)}\n")
    return screen


def attached(daemon: RunningDaemon, *words: str, rows: int = 30) -> Screen:
    """Be at a terminal with crctl."""
    screen = seat(daemon, *words, rows=rows)
    screen.shows("attached to process")
    screen.shows("\n")
    return screen


def status(screen: Screen) -> int:
    """Wait until what runs there has ended."""
    eventually("its end", lambda: os.waitid(os.P_PID, screen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))
    code = os.waitstatus_to_exitcode(os.waitpid(screen.pid, 0)[1])
    os.close(screen.master)
    return code


@pytest.fixture
def shell(daemon: RunningDaemon) -> Screen:
    """A shell with a job in the foreground."""
    screen = Screen(daemon.home, "bash", "--norc", "--noprofile")
    screen.type("KEPT=remembered; sleep 1000\n")
    eventually("a job", lambda: children(screen.pid))
    return screen


def test_a_shell_and_its_jobs(daemon: RunningDaemon, shell: Screen) -> None:
    crid = checkpoint(daemon, shell.pid, "--kill")
    shell.close()
    assert restart(daemon, crid) == shell.pid
    eventually("a job", lambda: children(shell.pid))
    screen = attached(daemon, "attach", str(shell.pid), rows=44)
    screen.type("\x03")
    screen.shows("$ ")
    screen.type("echo still $KEPT $(stty size)\n")
    screen.shows("still remembered 44 90")
    fcntl.ioctl(screen.master, termios.TIOCSWINSZ, WINDOW)  # the window is made smaller
    theirs = os.open(f"/proc/{shell.pid}/fd/0", os.O_RDONLY | os.O_NOCTTY)
    eventually("the new size", lambda: fcntl.ioctl(theirs, termios.TIOCGWINSZ, bytes(8)) == WINDOW)
    os.close(theirs)
    screen.type("sleep 1000\n")
    eventually("a job in the foreground", lambda: [
        pid for pid in children(shell.pid) if procfs.stat(pid).comm == "sleep"
        and procfs.stat(pid).field(FOREGROUND_GROUP) == pid])
    screen.type("\x1a")
    screen.shows("Stopped")
    screen.type("\x1d")
    screen.shows("which runs on")
    assert status(screen) == 0

    daemon.stop(signal.SIGKILL)  # the terminal is held by nobody who depends on it
    daemon.start()
    again = attached(daemon, "attach", "--request", "1")
    again.type("jobs\n")
    again.shows("Stopped")
    third = attached(daemon, "attach", str(shell.pid))
    again.shows("somebody else's now")
    assert status(again) == 14
    [job] = children(shell.pid)
    third.type("fg\n")
    eventually("the job to go on", lambda: Path(f"/proc/{job}/stat").read_text().rpartition(")")[2].split()[0] == "S")
    third.type("\x03")
    eventually("the end of the job", lambda: not children(shell.pid))
    third.type("printf 'the %s words\\n' last; exit\n")
    third.shows("the last words")
    assert status(third) == 0
    eventually("its end", lambda: not Path(f"/proc/{shell.pid}").exists())


def test_at_the_callers_terminal(daemon: RunningDaemon, shell: Screen) -> None:
    crid = checkpoint(daemon, shell.pid)
    checkpoint(daemon, shell.pid)
    shell.type("\x03")  # it runs on, on its terminal
    shell.type("echo un$KEPT\n")
    shell.shows("unremembered")
    shell.close()
    assert "a fresh one" in str(daemon.crctl("restart", crid, "--plan", "--stdio", "pty"))
    screen = attached(daemon, "restart", crid, "--stdio", "inherit")
    screen.type("\x03")
    screen.type("echo still $KEPT\n")
    screen.shows("still remembered")
    screen.close()  # the window is closed
    assert Path(f"/proc/{shell.pid}").exists()
    again = attached(daemon, "attach", str(shell.pid))
    again.type("echo yet $KEPT; exit\n")
    again.shows("yet remembered")
    assert status(again) == 0


def test_who_has_no_terminal_is_told(daemon: RunningDaemon, shell: Screen) -> None:
    crid = checkpoint(daemon, shell.pid, "--kill")
    shell.close()
    done = daemon.run_crctl("restart", crid, "--stdio", "inherit", stdin=0)
    assert done.returncode == 2
    assert "no terminal" in done.stderr
    assert daemon.crctl("requests") == []
    pid = restart(daemon, crid, "--stdio", "null")
    [job] = children(pid)
    assert os.readlink(f"/proc/{job}/fd/0") == "/dev/null"
    os.kill(job, signal.SIGKILL)
    eventually("the shell to read that there is no more", lambda: not Path(f"/proc/{pid}").exists())
    assert call_as(daemon, 0, "Attach", pid=os.getpid(), connection=0)[0] == "engine.terminal-not-held"
    assert call_as(daemon, 0, "Attach", request=1, connection=0)[0] == "target.gone"
    with pytest.raises(Refused, match=r"target\.not-found"):
        daemon.crctl("check", str(pid))


def test_an_editor_goes_on_with_its_file(daemon: RunningDaemon, tmp_path: Path) -> None:
    screen = Screen(tmp_path, "bash", "--norc", "--noprofile")
    screen.type("vi -u NONE notes\n")
    screen.shows("notes")
    screen.type("ifirst line")
    screen.shows("first line")
    crid = checkpoint(daemon, screen.pid)
    screen.type(" and what the image does not know")
    screen.shows("does not know")
    screen.close()
    eventually("the end", lambda: not Path(f"/proc/{screen.pid}").exists())
    assert restart(daemon, crid) == screen.pid
    at = attached(daemon, "attach", str(screen.pid))
    at.shows("first line")  # drawn again
    at.type(" goes on\x1b:wq\n")
    eventually("the file", (tmp_path / "notes").exists)
    at.type("echo $(cat notes); exit\n")
    at.shows("first line goes on")
    assert status(at) == 0
    assert (tmp_path / "notes").read_text() == "first line goes on\n"


class Seated(Screen):
    """The victim at a terminal."""

    def __init__(self, directory: Path, uid: int = 0) -> None:
        build()
        self.prefix = directory / "seated"
        super().__init__(directory, "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups",
                         VICTIMS / "bin" / "seated", self.prefix)
        eventually("readiness", self.prefix.with_suffix(".ready").exists)
        self.type("a")
        self.shows("<b>")

    def verify(self) -> None:
        self.prefix.with_suffix(".verify").touch()
        eventually("a verdict", self.prefix.with_suffix(".result").exists)
        assert self.prefix.with_suffix(".result").read_text() == "PASS\n"


def test_the_victim_left_running(daemon: RunningDaemon, tmp_path: Path) -> None:
    victim = Seated(tmp_path)
    for _ in range(3):
        checkpoint(daemon, victim.pid)
        victim.type("x")
        victim.shows("<y>")
    victim.verify()
    victim.close()


def test_the_victim_killed_and_the_older_image_restarted(daemon: RunningDaemon, tmp_path: Path) -> None:
    victim = Seated(tmp_path)
    older, newer = (checkpoint(daemon, victim.pid) for _ in range(2))
    victim.close()
    for crid in (newer, older):
        assert restart(daemon, crid) == victim.pid
        screen = attached(daemon, "attach", str(victim.pid), rows=25)
        screen.type("l?")
        screen.shows("<m><25 rows, 90 columns, redrawn>")
        if crid == newer:
            os.kill(victim.pid, signal.SIGKILL)
            assert status(screen) == 0
            eventually("the end", lambda: not Path(f"/proc/{victim.pid}").exists())
    victim.verify()
    assert status(screen) == 0


def test_only_its_owner_sits_down(daemon: RunningDaemon, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    victim = Seated(tmp_path, USER)
    crid = checkpoint(daemon, victim.pid, "--kill")
    victim.close()
    assert restart(daemon, crid) == victim.pid
    assert call_as(daemon, NOBODY, "Attach", pid=victim.pid, connection=0)[0] == "api.access-denied"
    code, _ = call_as(daemon, USER, "Attach", pid=victim.pid, connection=0)
    assert code == "api.bad-request", "descriptor 0 is no socket"
    assert run_as(USER, lambda: typed(daemon, victim.pid)) == "<b>"
    victim.verify()


def typed(daemon: RunningDaemon, pid: int) -> str:
    """Type a letter as whoever we are, and return the answer."""
    import socket

    from crd.api.client import Client

    ours, theirs = socket.socketpair()
    with Client(daemon.socket) as client:
        assert client.call("Attach", pid=pid, connection=theirs.fileno())["pid"] == pid
    theirs.close()
    data, [master, _], _, _ = socket.recv_fds(ours, 8, 2)
    assert len(data) == 8
    os.write(master, b"a")
    return os.read(master, 3).decode()


def test_the_terminal_of_another_is_not_ones_own_by_su(daemon: RunningDaemon, tmp_path: Path) -> None:
    """Whoever becomes another user at a terminal does not make it that user's."""
    shell = Screen(tmp_path, "bash", "--norc", "--noprofile")
    shell.type("python3 -c 'import os; os.setgroups([]); os.setresgid(65533, 65533, 65533); "
               "os.setresuid(65533, 65533, 65533); print(\"be\" + \"come\"); input()'\n")
    shell.shows("become")
    crid = checkpoint(daemon, shell.pid, "--kill")
    shell.close()
    assert restart(daemon, crid) == shell.pid
    [another] = children(shell.pid)
    assert call_as(daemon, USER, "Attach", pid=another, connection=0)[0] in {"api.access-denied", "api.bad-request"}
    assert run_as(USER, lambda: denied(daemon, another)) == "api.access-denied"


def denied(daemon: RunningDaemon, pid: int) -> str:
    import socket

    from crd.api.client import Client
    from crd.errors import CrdError

    _ours, theirs = socket.socketpair()
    try:
        with Client(daemon.socket) as client:
            client.call("Attach", pid=pid, connection=theirs.fileno())
    except CrdError as error:
        return error.code
    return ""
