"""``crd key``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crd.__main__ import crd
from crd.console.program import status_of


def test_a_new_key_is_made_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "key"
    assert status_of(crd, ["key", "--new", str(path)]) == 0
    key_id = capsys.readouterr().out.strip()
    assert len(key_id) == 16
    assert key_id not in path.read_text()
    assert status_of(crd, ["key", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"key_id": key_id}


def test_a_key_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"precious")
    assert status_of(crd, ["key", "--new", str(path)]) == 2
    assert "exists" in capsys.readouterr().err
    assert path.read_bytes() == b"precious"


def test_a_file_that_is_no_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "key"
    path.write_text("hunter2")
    path.chmod(0o600)
    assert status_of(crd, ["key", str(path)]) == 2
    told = capsys.readouterr().err
    assert "32 random bytes" in told
    assert "hunter2" not in told
