"""A terminal that controls a session, with jobs in the foreground and in the background."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import eventually
from tests.support.direct import checkpoint, crd, killed_and_restarted_from_both
from tests.support.victims import Victim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root


SPARE = 64


@pytest.fixture(autouse=True)
def low_numbers() -> Iterator[Callable[[], None]]:
    """Keep low numbers of terminals from the program, since others on this machine take them; called it lets go."""
    masters = [os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC) for _ in range(SPARE)]

    def give_back() -> None:
        while masters:
            os.close(masters.pop())

    yield give_back
    give_back()


def test_left_running(tmp_path: Path) -> None:
    with Victim("jobs", tmp_path) as victim:
        for number in range(3):
            checkpoint(victim, tmp_path / f"{number}.image")
            victim.assert_unharmed()
        victim.verify()


@pytest.mark.parametrize("words", [(), ("--pidns",)], ids=["", "pidns"])
def test_killed_and_the_older_image_restarted(words: tuple[str, ...], low_numbers: Callable[[], None],
                                              tmp_path: Path) -> None:
    with Victim("jobs", tmp_path) as victim:
        low_numbers()
        killed_and_restarted_from_both(victim, tmp_path, *words)
        victim.verify()


class Multiplexer:
    """A tmux server with one window, in which bash runs; what it is told comes from its real client."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "socket"
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(directory), "TERM": "xterm"}
        self.directory = directory
        self("-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30", "bash --norc --noprofile")
        self.pid = int(self("display-message", "-p", "#{pid}"))

    def __call__(self, *words: str) -> str:
        done = subprocess.run(["tmux", "-S", self.socket, *words], capture_output=True, text=True, check=True,
                              cwd=self.directory, env=self._environment, stdin=subprocess.DEVNULL,
                              start_new_session=True, timeout=60)
        return done.stdout.strip()

    def type(self, *keys: str) -> None:
        self("send-keys", *keys)

    def shows(self, text: str) -> None:
        eventually(f"{text} on the screen", lambda: text in self("capture-pane", "-p"))

    def family(self) -> list[int]:
        """Its processes, parents first."""
        found = [self.pid]
        for pid in found:
            with suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def kill(self) -> None:
        """SIGKILL to all of them, and wait until their numbers are free."""
        family = self.family()
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        eventually("the end", lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))


@pytest.fixture
def tmux(low_numbers: Callable[[], None], tmp_path: Path) -> Iterator[Multiplexer]:
    running = Multiplexer(tmp_path)
    low_numbers()
    yield running
    if Path(f"/proc/{running.pid}/cwd").exists():
        running.kill()


def test_tmux_with_a_shell_and_an_editor(tmux: Multiplexer, tmp_path: Path) -> None:
    tmux.type("KEPT=remembered; vi -u NONE notes", "Enter")
    tmux.shows("notes")
    tmux.type("ifirst line")
    tmux.shows("first line")
    assert len(tmux.family()) == 3
    done = crd("checkpoint", str(tmux.pid), "-o", tmp_path / "image", home=tmp_path)
    assert done.returncode == 0, done.stderr
    tmux.type(" and what the image does not know")
    tmux.shows("does not know")
    tmux.kill()
    done = crd("restart", "-i", tmp_path / "image", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == tmux.pid
    tmux.type(" goes on", "Escape", ":wq", "Enter")
    eventually("the file", (tmp_path / "notes").exists)
    tmux.type("echo still $KEPT $(cat notes)", "Enter")
    tmux.shows("still remembered first line goes on")
    tmux.type("sleep 1000", "Enter")
    eventually("a job", lambda: len(tmux.family()) == 3)
    tmux.type("C-c")  # ends the job, and leaves the shell
    eventually("the end of the job", lambda: len(tmux.family()) == 2)
    tmux.type("echo alive", "Enter")
    tmux.shows("\nalive")
