"""``crd config check``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from crd.__main__ import crd
from crd.console.program import status_of

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_good_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "crd.toml"
    file.write_text('[targets.web]\nunit = "web"\nevery = "1min"\n')
    assert status_of(crd, ["config", "check", str(file)]) == 0
    assert "Targets: web" in capsys.readouterr().out
    assert status_of(crd, ["config", "check", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["targets"]["web"]["every"] == "1min"


def test_everything_that_is_wrong_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "crd.toml"
    file.write_text("[engine]\nworkers = 0\n[archive]\nlevle = 1\n")
    assert status_of(crd, ["config", "check", str(file)]) == 2
    told = capsys.readouterr()
    assert not told.out
    assert f"{file}:2: engine.workers" in told.err
    assert f"{file}:4: archive.levle: unknown key; did you mean level?" in told.err
    assert status_of(crd, ["config", "check", str(tmp_path / "nothing")]) == 2
