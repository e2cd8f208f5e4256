from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from crd.console.program import print_json_list
from crd.console.progress import Progress
from crd.console.table import print_fields, print_table

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def test_rows_are_printed_while_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []

    def rows() -> Iterator[tuple[object, ...]]:
        for number in range(1200):
            yield number, "x" * (number // 500 + 1), number
            told.append(capsys.readouterr().out)

    print_table(("n", "x", "m"), rows())
    told.append(capsys.readouterr().out)
    assert not told[498]
    assert told[499].startswith("N    X  M\n0    x  0\n1    x  1\n")
    lines = "".join(told).splitlines()
    assert len(lines) == 1201
    assert lines[1200] == "1199  xxx  1199"


def test_json_is_printed_while_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    for values in ([], [{}], [{"crid": 1, "tags": ["a\nb"]}, 2, None]):
        print_json_list(values)
        assert capsys.readouterr().out == json.dumps(values, indent=2) + "\n"


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
