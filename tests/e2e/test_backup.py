"""The catalog backed up while the daemon works, lost, put back, and what it had not seen yet taken in again."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.daemon import BIN, RunningDaemon, eventually
from tests.support.workload import CountingProgram

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


def crd(daemon: RunningDaemon, *words: str | Path) -> tuple[int, dict[str, Any]]:
    """Run ``crd catalog``; return its exit status, and what it printed."""
    done = subprocess.run([BIN / "crd", "catalog", *words, "--config", daemon.config, "--json"], capture_output=True,
                          env=daemon.environment, text=True, check=False)
    return done.returncode, json.loads(done.stdout or done.stderr)


def test_back_up_lose_restore_and_adopt(tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    daemon = RunningDaemon(tmp_path, f'[targets.counter]\npidfile = "{tmp_path}/program.pid"\nevery = "1d"\n')
    with CountingProgram(tmp_path) as program:
        with daemon:
            for _ in range(2):
                daemon.crctl("checkpoint", "counter")
            daemon.crctl("pin", "1")
            with daemon.without_workers():
                daemon.crctl("restart", "1")
                assert crd(daemon, "backup", copy)[0] == 0
                assert copy.stat().st_mode & 0o777 == 0o600
                assert crd(daemon, "restore", copy)[1]["error"] == "settings.state-in-use"
            eventually("the request to end", lambda: daemon.crctl("request", "show", "1")["state"] == "failed")
            daemon.crctl("checkpoint", "counter")
            before = {image["crid"]: image for image in daemon.crctl("images")}
            daemon.crctl("forget", "2")
            daemon.stop()
        (tmp_path / "state" / "catalog.db").write_bytes(b"lost" * 1000)
        (tmp_path / "crid").unlink()
        moved = crd(daemon, "restore", copy)
        assert moved[0] == 0, moved
        with daemon:
            assert {image["crid"] for image in daemon.crctl("images")} == {1, 2}
            request = daemon.crctl("request", "show", "1")
            assert (request["state"], request["error"]) == ("failed", "restart.interrupted"), "it is not done again"
            wrong = {problem["code"]: problem["message"] for problem in daemon.crctl("status")["problems"]}
            assert wrong["archive.without-row"].endswith(": 3")
            assert wrong["archive.image-missing"].endswith(": 2")
            assert daemon.crctl("adopt", "--target", "counter") == {"images": 1, "adopted": 1, "failed": 0}
            assert daemon.crctl("forget", "2")
            assert not {"archive.without-row", "archive.image-missing"} & {
                problem["code"] for problem in daemon.crctl("status")["problems"]}
            images = {image["crid"]: image for image in daemon.crctl("images", "counter")}
            same = ("pid", "comm", "uid", "image_bytes", "digest", "tasks", "threads", "header")
            assert {name: images[3][name] for name in same} == {name: before[3][name] for name in same}
            assert images[1] == before[1], "pinned as it was"
            assert daemon.crctl("adopt")["images"] == 0
            program.kill()
            daemon.crctl("restart", "counter@latest", "--wait")
            program.assert_unharmed()
            assert daemon.crctl("checkpoint", "counter")["crid"] == 4, "no crid is given twice"


def test_what_is_no_backup_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    daemon = RunningDaemon(tmp_path)
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    catalog = state / "catalog.db"
    catalog.write_bytes(b"as it was")
    (tmp_path / "rubbish").write_bytes(b"rubbish " * 1000)
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE recipes(name)")
    for name in ("rubbish", "other.db"):
        assert crd(daemon, "restore", tmp_path / name)[1]["error"] == "catalog.out-of-date"
    assert crd(daemon, "restore", tmp_path / "missing")[0] == 1
    assert crd(daemon, "backup", tmp_path / "copy.db")[1]["error"] == "catalog.out-of-date"
    assert catalog.read_bytes() == b"as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crd.toml", "other.db", "rubbish", "state"]
    assert {path.name for path in state.iterdir()} <= {"catalog.db", "lock"}
