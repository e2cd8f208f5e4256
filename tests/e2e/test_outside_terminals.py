"""A shell whose terminal is another's comes back on its caller's terminal, on a fresh one, or on none."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import termios
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import BIN, eventually
from tests.support.direct import crd

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root


class Screen:
    """A program on a terminal whose master we have."""

    def __init__(self, directory: Path, *words: str | Path) -> None:
        self.pid, self.master = pty.fork()
        if not self.pid:
            os.closerange(3, 4096)
            os.chdir(directory)
            os.environ.update(PS1="$ ", TERM="xterm", CRD_ENGINE__CRID_FILE=str(directory / "crid"))
            os.execvp(words[0], list(map(str, words)))
        self.said = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def shows(self, text: str) -> None:
        """Wait for text behind what was waited for before."""
        def look() -> bool:
            with suppress(OSError):  # EIO: nobody is there any more
                while select.select([self.master], [], [], 0)[0]:
                    self.said += os.read(self.master, 1 << 16).decode(errors="replace")
            return text in self.said

        eventually(f"{text!r} on the screen", look)
        self.said = self.said.partition(text)[2]

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        os.close(self.master)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    """An image of a shell with a job in the foreground, which is killed."""
    screen = Screen(tmp_path, "bash", "--norc", "--noprofile")
    screen.type("KEPT=remembered; trap 'echo ended' EXIT; sleep 1000\n")
    eventually("a job", lambda: children(screen.pid))
    for number in range(2):
        done = crd("checkpoint", str(screen.pid), "-o", tmp_path / f"{number}.image", home=tmp_path)
        assert done.returncode == 0, done.stderr
    screen.type("\x03")  # it runs on, on its terminal
    screen.type("echo un$KEPT\n")
    screen.shows("unremembered")
    screen.close()
    yield tmp_path / "0.image"
    with suppress(ProcessLookupError, FileNotFoundError):
        if Path(f"/proc/{screen.pid}/cwd").readlink() == tmp_path:
            os.kill(screen.pid, 9)


@pytest.mark.parametrize("wish", ["inherit", "pty"])
def test_at_the_terminal_of_the_caller(image: Path, wish: str) -> None:
    screen = Screen(image.parent, "bash", "--norc", "--noprofile")
    screen.type(f"{BIN / 'crd'} restart -i {image} --stdio {wish}\n")
    screen.shows("the place of the terminal")
    screen.shows("\n")
    if wish == "pty":
        eventually("all keys to be left to it", lambda: not termios.tcgetattr(screen.master)[3] & termios.ISIG)
    screen.type("\x03")
    screen.type("echo still $KEPT\n")
    screen.shows("still remembered")
    if wish == "inherit":
        screen.type("kill -STOP $$\n")
        screen.shows("Stopped")
        screen.type("fg\n")
        screen.type("echo again $KEPT\n")
        screen.shows("again remembered")
    screen.type("exit 7\n")
    screen.shows("ended")
    screen.type("echo status=$?; stty -a | grep -o ' icanon'\n")
    screen.shows("status=7")
    screen.shows(" icanon")
    screen.close()


@pytest.mark.parametrize(("words", "link"), [((), "/dev/pts/"), (("--stdio", "null"), "/dev/null")])
def test_without_anybody_at_the_terminal(image: Path, words: tuple[str, ...], link: str, tmp_path: Path) -> None:
    plan = crd("restart", "-i", image, "--plan", *words, home=tmp_path)
    assert plan.returncode == 0, plan.stderr
    assert ("in its place /dev/null" if words else "in its place a fresh one") in plan.stdout
    done = crd("restart", "-i", image, *words, home=tmp_path)
    assert done.returncode == 0, done.stderr
    pid = int(done.stdout)
    [job] = children(pid)
    assert os.readlink(f"/proc/{job}/fd/0").startswith(link)
    controlled = Path(f"/proc/{job}/stat").read_text().rpartition(")")[2].split()[4] != "0"
    assert controlled == (not words)
    os.kill(job, 9)
    if words:
        eventually("the shell to read that there is no more", lambda: not Path(f"/proc/{pid}").exists())
        return
    eventually("the prompt", lambda: not children(pid))
    screen = Screen(tmp_path, BIN / "crd", "attach", str(pid))
    screen.shows("attached to process")
    screen.shows("\n")
    screen.type("echo still $KEPT; exit\n")
    screen.shows("still remembered")
    screen.shows("ended")
    screen.close()


def test_the_callers_terminal_is_not_promised_where_there_is_none(image: Path, tmp_path: Path) -> None:
    done = subprocess.run([BIN / "crd", "restart", "-i", image, "--stdio", "inherit"], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, check=False, start_new_session=True, timeout=60)
    assert done.returncode == 13
    assert "--stdio pty" in done.stderr
    done = crd("restart", "-i", image, "--stdio", "inherit", "--detach", home=tmp_path)
    assert done.returncode == 2
