"""``crd check`` as an operator and as a program sees it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from crd.direct.check import check
from crd.errors import TargetNotFound
from tests.support import victims
from tests.support.victims import Program, Victim, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Program]:
    """A process that has opened a namespace, which its child has open, too."""
    source = ("import os, subprocess, time\nfd = os.open('/proc/self/ns/net', os.O_RDONLY)\n"
              "child = subprocess.Popen(['/bin/sleep', '1000'], stdin=fd)\n"
              "open('ready', 'w').close()\ntime.sleep(1000)")
    with victims.python_script(tmp_path, source) as program:
        until("readiness", (tmp_path / "ready").exists)
        yield program


def test_nothing_in_the_way(tmp_path: Path) -> None:
    with Victim("idle", tmp_path) as victim:
        text = CliRunner().invoke(check, [str(victim.pid)])
        value = CliRunner().invoke(check, [str(victim.pid), "--json"])
    assert (text.exit_code, text.output) == (0, f"{victim.pid} (idle) can be checkpointed.\n")
    assert (value.exit_code, json.loads(value.output)) == (0, {"pid": victim.pid, "comm": "idle", "obstacles": [],
                                                               "notes": []})


def test_obstacles_for_people(parent: Program) -> None:
    result = CliRunner().invoke(check, [str(parent.pid)])
    assert result.exit_code == 13
    lines = result.output.splitlines()
    assert lines[0].startswith(f"{parent.pid} (python")
    assert lines[0].endswith("cannot be checkpointed: 2 obstacles.")
    assert any("(sleep)" in line for line in lines)
    assert sum(line.startswith("    -> ") for line in lines) == 2
    assert ".." not in result.output


def test_obstacles_for_programs(parent: Program) -> None:
    result = CliRunner().invoke(check, [str(parent.pid), "--json"])
    assert result.exit_code == 13
    obstacles = json.loads(result.output)["obstacles"]
    assert [obstacle["code"] for obstacle in obstacles] == ["fd.special", "fd.special"]
    assert all(set(obstacle) == {"code", "object", "reason", "remedy"} for obstacle in obstacles)


def test_no_such_process() -> None:
    with pytest.raises(TargetNotFound):
        CliRunner().invoke(check, ["4194305"], catch_exceptions=False)


@pytest.mark.parametrize("word", ["0", "-3", "x", ""])
def test_no_pid(word: str) -> None:
    assert CliRunner().invoke(check, ["--", word]).exit_code == 2
