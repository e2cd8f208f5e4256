from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from typing import Any

import click
import pytest

from crd.console.program import Lazy, Program, json_option, print_json, status_of
from crd.errors import CrdError, PidInUse, TraceDenied

ANSWERS: dict[str, Any] = {}


@click.command()
@click.argument("what")
@json_option
def act(what: str, *, as_json: bool) -> object:
    """Do it."""
    answer = ANSWERS[what]
    if isinstance(answer, BaseException):
        raise answer
    if as_json:
        print_json(answer)
    return answer


@click.group(cls=Program, commands={
    "act": Lazy(f"{__name__}:act", "Do it."), "broken": Lazy("crd.console.nothing:x", "Not there."),
    "none": Lazy("crd.console.units:size", "No command.")})
def program() -> None:
    """Try things."""


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    monkeypatch.setattr(sys.modules[__name__], "ANSWERS", ANSWERS)


@pytest.mark.parametrize(("answer", "status"), [
    (None, 0), (0, 0), (13, 13), ("text", 0), (CrdError("x"), 1), (PidInUse("x"), 14), (TraceDenied("x"), 12),
    (click.UsageError("x"), 2), (click.exceptions.Exit(7), 7), (KeyboardInterrupt(), 130), (EOFError(), 130)])
def test_exit_status(answer: object, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    ANSWERS["x"] = answer
    assert status_of(program, ["act", "x"]) == status
    assert not capsys.readouterr().out


def test_errors_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    ANSWERS["x"] = PidInUse("pid 7 is in use by \x1b[2J", hint="Try --new-pids.", pid=7)
    assert status_of(program, ["act", "x"]) == 14
    assert capsys.readouterr() == ("", "program: pid 7 is in use by \\x1b[2J\nTry --new-pids.\n")


def test_errors_of_several_lines(capsys: pytest.CaptureFixture[str]) -> None:
    ANSWERS["x"] = CrdError("crd.toml:4: levle\ncrd.toml:7: every")
    assert status_of(program, ["act", "x"]) == 1
    assert capsys.readouterr().err == "program: crd.toml:4: levle\ncrd.toml:7: every\n"


def test_errors_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    ANSWERS["x"] = PidInUse("pid 7 is in use", hint="Try --new-pids.", pid=7, at=object())
    assert status_of(program, ["act", "x", "--json"]) == 14
    out, err = capsys.readouterr()
    assert not out
    error = json.loads(err)
    assert error.pop("at").startswith("<object")
    assert error == {"error": "restart.pid-in-use", "message": "pid 7 is in use", "hint": "Try --new-pids.", "pid": 7,
                     "retryable": False}


def test_usage_errors_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(program, ["act", "--json"]) == 2
    error = json.loads(capsys.readouterr().err)
    assert error == {"error": "usage", "message": "Missing argument 'WHAT'.", "hint": "Try program act --help."}


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    ANSWERS["x"] = {"name": "ä\udc80"}
    assert status_of(program, ["act", "x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ANSWERS["x"]


def test_help_imports_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(program, ["--help"]) == 0
    assert "Not there." in capsys.readouterr().out


def test_a_command_that_cannot_be_imported_is_a_mistake() -> None:
    with pytest.raises(ModuleNotFoundError):
        status_of(program, ["broken"])
    with pytest.raises(TypeError):
        status_of(program, ["none"])


def test_who_asks_for_nothing_sees_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(program, []) == 2
    assert capsys.readouterr().err.startswith("Usage: ")


def test_names_that_are_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(program, ["nothing"]) == 2
    assert "No such command 'nothing'" in capsys.readouterr().err


FILES = """
import click, sys, time
from crd.console.program import run
@click.command()
@click.argument("what")
def act(what):
    if what == "open":
        open("/nowhere/file")
    print("ready", flush=True)
    while what == "wait":
        time.sleep(1)
    for _ in range(100_000):
        print("x" * 100)
run(act)
"""


def test_other_errors_of_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", FILES, "open"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"act: /nowhere/file: {os.strerror(errno.ENOENT)}\n"


def test_interrupted() -> None:
    def heed_interrupts() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # CI may have started us without

    with subprocess.Popen([sys.executable, "-c", FILES, "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, preexec_fn=heed_interrupts) as waiting:
        assert waiting.stdout.readline() == "ready\n"
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait() == 130
        assert not waiting.stderr.read().strip()


def test_a_reader_that_leaves() -> None:
    with subprocess.Popen([sys.executable, "-c", FILES, "print"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as printing:
        assert printing.stdout.readline() == "ready\n"
        printing.stdout.close()
        assert printing.wait() == 1
        assert not printing.stderr.read()
