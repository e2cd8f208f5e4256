from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from crd.__main__ import crd
from crd.console.program import status_of
from tests.support.builders import PID, make_tree_records, write_image
from tests.support.daemon import BIN
from tests.support.linux_cr import IMAGES

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(write_image(make_tree_records()))
    return path


def test_a_core_of_the_first_task_or_another(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    core = tmp_path / "core"
    assert status_of(crd, ["core", "-i", str(image), "-o", str(core)]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"pid {PID} (worker), 2 threads, 24 KiB of memory: gdb /usr/bin/worker {core}\n")
    assert status_of(crd, ["core", "-i", str(image), "-o", str(core), "--task", str(PID + 5), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"pid": PID + 5, "comm": "worker", "exe": "/usr/bin/worker", "threads": 1, "memory_bytes": 0,
                    "core_bytes": core.stat().st_size}


def test_through_pipes(image: Path, tmp_path: Path) -> None:
    assert status_of(crd, ["core", "-i", str(image), "-o", str(tmp_path / "core")]) == 0
    done = subprocess.run([BIN / "crd", "core", "-i", "-", "-o", "-", "--json"], input=image.read_bytes(), check=True,
                          capture_output=True)
    assert done.stdout == (tmp_path / "core").read_bytes()
    assert json.loads(done.stderr)["pid"] == PID


@pytest.mark.parametrize(("content", "words", "status", "code"), [
    (None, ["--task", "1"], 11, "image.task-missing"),
    (None, ["--task", str(PID + 10)], 11, "image.task-missing"),
    (IMAGES["gen-B-little"], [], 13, "image.version-unsupported"),
    (b"\x7fELF" + bytes(1000), [], 13, "image.version-unsupported"),
    (b"", [], 1, "image.truncated")], ids=str)
def test_what_no_core_can_be_made_of(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                     content: bytes | None, words: list[str], status: int, code: str) -> None:
    if content is not None:
        image.write_bytes(content)
    (tmp_path / "core").write_text("old")
    assert status_of(crd, ["core", "-i", str(image), "-o", str(tmp_path / "core"), *words, "--json"]) == status
    assert json.loads(capsys.readouterr().err)["error"] == code
    assert (tmp_path / "core").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["core", "image"]
