"""The programs of the README that save themselves do what it says of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from crd import selfckpt
from tests.support.daemon import BIN, Refused, RunningDaemon
from tests.support.victims import Program, until

pytestmark = pytest.mark.root

SECTION = (Path(__file__).parents[2] / "README.md").read_text().split("### Programs that save themselves\n")[1]


def example(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def command(language: str, directory: Path) -> list[str]:
    if language == "python":
        (directory / "count.py").write_text(example("python"))
        return [sys.executable, "count.py"]
    (directory / "count.c").write_text(example("c"))
    subprocess.run(["gcc", "-Wall", "-Wextra", "-Werror", f"-I{selfckpt.INCLUDE}", "-o", "count", "count.c"],
                   cwd=directory, check=True)
    return ["./count"]


def imported(daemon: RunningDaemon, directory: Path) -> int:
    """Take the newest image that is whole into the archive."""
    newest, older = sorted((directory / "count.1", directory / "count.2"), key=lambda path: -path.stat().st_mtime_ns)
    try:
        return int(daemon.crctl("import", str(newest))["crid"])
    except Refused:
        return int(daemon.crctl("import", str(older))["crid"])


@pytest.mark.parametrize("language", ["c", "python"])
def test_it_counts_saves_itself_is_killed_and_counts_on(daemon: RunningDaemon, tmp_path: Path, language: str) -> None:
    words = [BIN / "crctl", "run", "--socket", daemon.socket, "--", *command(language, tmp_path)]
    with Program(words, tmp_path, name="count") as program:
        def lines() -> list[str]:
            return program.file("stdout").read_text().splitlines()

        def counted() -> list[int]:
            return [int(line) for line in lines() if line.isdigit()]

        until("two images", lambda: lines().count("saved") >= 2)
        program.kill()
        reached = counted()[-1]
        assert daemon.crctl("restart", str(imported(daemon, tmp_path)), "--wait")["root_pid"] == program.pid
        until("the return of the call", lambda: "restarted" in lines())
        until("steps beyond those before, and another image", lambda: counted()[-1] > reached + 12)
        program.assert_unharmed()
        assert (now := counted()) == [*range(1, now[-1] + 1)]
        at = lines().index("restarted")
        assert int(lines()[at - 1]) % 10 == 0
        assert "saved" in lines()[at + 1:]
