from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from crd.console.progress import Progress
from crd.console.table import print_fields, print_table

if TYPE_CHECKING:
    import pytest

HOSTILE = "a\x1b[2Jb\nc\udc80[bold]"
ESCAPED = "a\\x1b[2Jb\\nc\\udc80[bold]"


def pretend_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)


def test_columns_are_aligned_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("crid", "name"), [(1, "web"), (1000, None), (None, "")])
    assert capsys.readouterr().out == "CRID  NAME\n1     web\n1000  -\n-     -\n"


def test_only_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("crid", "name"), [])
    assert capsys.readouterr().out == "CRID  NAME\n"


def test_names_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name",), [(HOSTILE,)])
    print_fields({"name": HOSTILE})
    assert capsys.readouterr().out == f"NAME\n{ESCAPED}\nname  {ESCAPED}\n"


def test_drawn_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_terminal(monkeypatch)
    print_table(("crid", "name"), [(42, HOSTILE)])
    out = capsys.readouterr().out
    assert "42" in out
    assert ESCAPED in out
    assert "─" in out


def test_fields(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields({"crid": 42, "target": None})
    print_fields({})
    assert capsys.readouterr().out == "crid    42\ntarget  -\n"


def test_no_progress_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress.show("half")
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal_is_gone_in_the_end(capsys: pytest.CaptureFixture[str],
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_terminal(monkeypatch)
    with Progress() as progress:
        progress.show("half")
        progress.show(HOSTILE)
    out, err = capsys.readouterr()
    assert not out
    assert err == f"\r\x1b[Khalf\r\x1b[K{ESCAPED}\r\x1b[K"
