"""The commands of crd without the engine: what they ask of it, and what they make of its answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from crd.__main__ import COMMANDS, crd
from crd.console.program import status_of
from crd.engine import api
from crd.engine.crid import CridCounter
from crd.errors import PidInUse, TargetGone

if TYPE_CHECKING:
    from pathlib import Path

HEADER = {"magic": "0x00feed0cc0a2d200", "kernel": "6.18.0", "rev": 14, "flags": 0, "time": 0, "release": "",
          "version": "", "machine": "x86_64"}


class Engine:
    """Stands in for crd.engine.api; remembers what it was asked."""

    def __init__(self) -> None:
        self.options: Any = None
        self.failure: Exception | None = None
        self.at_commit: list[Path] = []
        self.watched: Path | None = None

    def checkpoint(self, pid, fd, flags=0, *, crids, options=None, commit=None):
        self.options = options
        assert isinstance(crids, CridCounter)
        os.write(fd, b"image")
        if self.failure:
            raise self.failure
        result = api.CheckpointResult(
            crid=crids.next(), pid=pid, uid=0, comm="wor\nker", taken_at=0.0, engine="userspace", method="snapshot",
            method_reason="", tasks=1, threads=3, image_bytes=5, memory_bytes=4096, stop_seconds=0.002,
            duration_seconds=0.1, header=HEADER)
        commit(result)
        if self.watched:
            self.at_commit = [self.watched] * self.watched.exists()
        return result

    def restart(self, fd, flags=0, *, options=None, confirm=None):
        self.options = options
        self.image = os.read(fd, 100)
        result = api.RestartResult(root_pid=4242, start_time=1, pids={4242: 4242})
        confirm(result)
        if self.failure:
            raise self.failure
        return result


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engine:
    fake = Engine()
    monkeypatch.setattr(api, "checkpoint", fake.checkpoint)
    monkeypatch.setattr(api, "restart", fake.restart)
    monkeypatch.setattr(api, "wait_for_root", lambda result: result.root_pid - 4199)
    monkeypatch.setenv("CRD_ENGINE__CRID_FILE", str(tmp_path / "crid"))
    return fake


class TestCheckpoint:
    def test_a_file(self, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        engine.watched = tmp_path / "image"
        assert status_of(crd, ["checkpoint", "7", "-o", str(tmp_path / "image")]) == 0
        assert engine.at_commit == [tmp_path / "image"]
        assert (tmp_path / "image").read_bytes() == b"image"
        assert engine.options == api.CheckpointOptions()
        out, err = capsys.readouterr()
        assert not out
        assert err == ("crid 1: pid 7 (wor\\nker), 1 task, 3 threads, 5 B, 4 KiB of memory, stopped for 2 ms, "
                       "took 100 ms\n")

    @pytest.mark.parametrize(("option", "after"), [("--kill", api.After.KILL), ("--stop", api.After.STOP)])
    def test_options(self, engine: Engine, tmp_path: Path, option: str, after: api.After) -> None:
        words = ["checkpoint", "7", "-o", str(tmp_path / "image"), option, "--engine", "kernel"]
        assert status_of(crd, words) == 0
        assert engine.options == api.CheckpointOptions(after=after, engine="kernel")

    def test_figures_for_programs(self, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert status_of(crd, ["checkpoint", "7", "-o", str(tmp_path / "image"), "--json"]) == 0
        out, err = capsys.readouterr()
        figures = json.loads(out)
        assert not err
        assert figures["header"] == HEADER
        assert {"crid", "pid", "engine", "tasks", "threads", "image_bytes", "memory_bytes", "stop_seconds",
                "duration_seconds"} <= figures.keys()

    def test_standard_output(self, engine: Engine, capfd: pytest.CaptureFixture[str]) -> None:
        assert status_of(crd, ["checkpoint", "7", "-o", "-", "--json"]) == 0
        out, err = capfd.readouterr()
        assert out == "image"
        assert json.loads(err)["crid"] == 1

    def test_a_failure_leaves_no_file(self, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        engine.failure = TargetGone("process 7 has ended")
        assert status_of(crd, ["checkpoint", "7", "-o", str(tmp_path / "image"), "--json"]) == 11
        assert json.loads(capsys.readouterr().err)["error"] == "target.gone"
        assert not (tmp_path / "image").exists()

    @pytest.mark.parametrize("words", [("7",), ("-o", "x"), ("0", "-o", "x"), ("x", "-o", "x"),
                                       ("7", "-o", "x", "--engine", "other")])
    def test_usage(self, engine: Engine, words: tuple[str, ...], tmp_path: Path,
                   monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert status_of(crd, ["checkpoint", *words]) == 2
        assert not os.listdir(tmp_path)
        assert engine.options is None

    def test_a_kernel_without_the_calls(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["checkpoint", str(os.getpid()), "-o", str(tmp_path / "image"), "--engine", "kernel", "--json"]
        assert status_of(crd, words) == 13
        assert json.loads(capsys.readouterr().err)["error"] == "engine.feature-missing"


class TestRestart:
    @pytest.fixture
    def image(self, tmp_path: Path) -> str:
        (tmp_path / "image").write_bytes(b"image")
        return str(tmp_path / "image")

    def test_prints_the_pid(self, engine: Engine, image: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert status_of(crd, ["restart", "-i", image]) == 0
        assert capsys.readouterr() == ("4242\n", "")
        assert engine.image == b"image"
        assert engine.options == api.RestartOptions()

    def test_json(self, engine: Engine, image: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert status_of(crd, ["restart", "-i", image, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["root_pid"] == 4242

    def test_options(self, engine: Engine, image: str) -> None:
        assert status_of(crd, ["restart", "-i", image, "--new-pids", "--files", "fail"]) == 0
        assert engine.options == api.RestartOptions(pids=api.Pids.NEW, files=api.Files.FAIL)
        assert status_of(crd, ["restart", "-i", image, "--pidns", "--detach"]) == 0
        assert engine.options == api.RestartOptions(pids=api.Pids.NAMESPACE)

    def test_waiting_gives_the_exit_status_of_the_root(self, engine: Engine, image: str,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
        assert status_of(crd, ["restart", "-i", image, "--wait"]) == 43
        assert capsys.readouterr().out == "4242\n"

    def test_the_pid_file_is_there_before_anything_runs(self, engine: Engine, image: str, tmp_path: Path) -> None:
        engine.failure = PidInUse("pid 4242 is in use")
        assert status_of(crd, ["restart", "-i", image, "--root", str(tmp_path / "root.pid")]) == 14
        assert (tmp_path / "root.pid").read_text() == "4242\n"

    def test_a_pid_file_that_cannot_be_written_prevents_the_restart(self, engine: Engine, image: str, tmp_path: Path,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
        assert status_of(crd, ["restart", "-i", image, "--root", str(tmp_path / "none" / "pid")]) == 1
        assert not capsys.readouterr().out

    def test_no_image(self, engine: Engine, tmp_path: Path) -> None:
        assert status_of(crd, ["restart", "-i", str(tmp_path / "none")]) == 1
        assert status_of(crd, ["restart"]) == 2
        assert engine.options is None


@pytest.mark.root
def test_features(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(crd, ["features", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"name", "what", "available", "without"} <= found[0].keys()
    assert status_of(crd, ["features"]) == 0
    assert all(feature["what"] in capsys.readouterr().out for feature in found[:1])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_exit_codes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(crd, [name, "--help"]) == 0
    assert "Exit status: 0 " in " ".join(capsys.readouterr().out.split())


def test_help_imports_no_command() -> None:
    script = ("import sys\nfrom crd.__main__ import crd\nfrom crd.console.program import status_of\n"
              "status_of(crd, ['--help'])\nprint(*sys.modules, file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Run the daemon" in done.stdout
    assert not {"crd.daemon", "crd.direct", "crd.engine", "crd.native", "pydantic", "sqlalchemy", "asyncio"} & set(
        done.stderr.split())
