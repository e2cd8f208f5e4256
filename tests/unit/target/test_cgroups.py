"""Frozen cgroups: on a tree of our own, and on a real one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.target import preflight, procfs
from crd.target.cgroups import frozen_cgroup
from tests.support.victims import Victim, until

if TYPE_CHECKING:
    from collections.abc import Iterator

PID = 4242


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc with one process, a version 2 hierarchy and one of version 1 with the freezer."""
    monkeypatch.setattr(procfs, "PROC", tmp_path / "proc")
    for name in ("proc/self", f"proc/{PID}", "v 2/job", "v1/job", "cpu/job"):
        (tmp_path / name).mkdir(parents=True)
    where = str(tmp_path).replace(" ", r"\040")
    (tmp_path / "proc/self/mountinfo").write_text(
        f"30 1 0:26 / {where}/v\\0402 rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
        f"31 1 0:27 / {where}/v1 rw - cgroup cgroup rw,freezer\n32 1 0:28 / {where}/cpu rw - cgroup cgroup rw,cpu\n")
    (tmp_path / f"proc/{PID}/cgroup").write_text("5:freezer:/job\n4:cpu:/job\n0::/job\n")
    return tmp_path


def test_nothing_frozen(tree: Path) -> None:
    assert frozen_cgroup(PID) is None
    (tree / "v 2/job/cgroup.events").write_text("populated 1\nfrozen 0\n")
    (tree / "v1/job/freezer.state").write_text("THAWED\n")
    (tree / "cpu/job/freezer.state").write_text("FROZEN\n")  # no freezer there
    assert frozen_cgroup(PID) is None


@pytest.mark.parametrize(("file", "content"), [("v 2/job/cgroup.events", "populated 1\nfrozen 1\n"),
                                               ("v1/job/freezer.state", "FROZEN\n"),
                                               ("v1/job/freezer.state", "FREEZING\n")])
def test_frozen(tree: Path, file: str, content: str) -> None:
    (tree / file).write_text(content)
    assert frozen_cgroup(PID) == "/job"


def test_a_cgroup_outside_our_view_is_not_looked_for(tree: Path) -> None:
    (tree / f"proc/{PID}/cgroup").write_text("0::/../../v1/job\n")
    (tree / "v1/job/cgroup.events").write_text("frozen 1\n")
    assert frozen_cgroup(PID) is None


def hierarchies() -> list[Path]:
    """Where the freezers of this machine are mounted."""
    lines = [line.split(" ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    mounted = [Path(words[4]) for words in lines
               if "cgroup2" in words or ("cgroup" in words and "freezer" in words[-1])]
    return [path for path in mounted if os.access(path, os.W_OK)]


@pytest.fixture(params=hierarchies(), ids=str)
def frozen_victim(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Victim]:
    cgroup = request.param / f"frozen-by-test-{os.getpid()}"
    cgroup.mkdir()
    switch, on, off = (cgroup / "freezer.state", "FROZEN", "THAWED")
    if not switch.exists():
        switch, on, off = (cgroup / "cgroup.freeze", "1", "0")
    try:
        with Victim("idle", tmp_path) as victim:
            (cgroup / "cgroup.procs").write_text(str(victim.pid))
            switch.write_text(on)
            until("frost", lambda: frozen_cgroup(victim.pid) is not None)
            try:
                yield victim
            finally:
                switch.write_text(off)
    finally:
        until("empty cgroup", lambda: (cgroup / "cgroup.procs").read_text() == "")
        cgroup.rmdir()


@pytest.mark.root
def test_a_really_frozen_process(frozen_victim: Victim) -> None:
    obstacle, = preflight.obstacles(frozen_victim.pid)
    assert obstacle.code == "task.frozen"
    assert f"frozen-by-test-{os.getpid()}" in obstacle.object
    assert "Thaw" in obstacle.remedy
