"""crctl as a program: help, start-up, sockets, pipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from crd.cli.main import COMMANDS, crctl
from crd.console.program import status_of

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Crctl, Daemon

BIN = Path(sys.executable).parent
HEAVY = {"crd.engine", "crd.native", "crd.image", "crd.archive", "crd.catalog", "crd.daemon", "crd.settings", "cffi",
         "sqlalchemy", "pydantic", "pydantic_settings", "prometheus_client", "asyncio", "obstore", "rich"}
IMPORTS = """
import sys
from crd.cli.main import crctl
from crd.console.program import status_of
status = status_of(crctl, sys.argv[1:])
print("\\n".join(sys.modules), file=sys.stderr)
sys.exit(status)
"""


def commands(group: click.Group, *path: str):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


ALL = dict(commands(crctl))


def test_all_commands_are_there() -> None:
    assert {" ".join(path) for path in ALL} == {
        "status", "reload", "targets", "target", "target add", "target remove", "target hold", "target resume",
        "checkpoint", "images", "show", "diff", "run", "restart", "attach", "forget", "sweep", "pin", "tag", "note",
        "verify", "scrub", "export", "import", "adopt", "requests", "request", "request show", "request cancel",
        "check", "save-for-shutdown"}


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_tells_exit_codes(path: tuple[str, ...], crctl_: Crctl) -> None:
    text = " ".join(crctl_(*path, "--help").split())
    assert f"Usage: crctl {' '.join(path)}" in text
    assert "Exit status: 0 " in text
    if not isinstance(ALL[path], click.Group):
        assert "--json" in text or path in {("run",), ("attach",)}  # which print nothing of their own
        assert "--socket PATH" in text


def test_the_list_of_commands(crctl_: Crctl) -> None:
    text = " ".join(crctl_("--help").split())
    for name, lazy in COMMANDS.items():
        assert f"{name} {lazy.help}" in text


@pytest.mark.parametrize("words", [["--help"], ["checkpoint", "--help"], ["images", "--json"]])
def test_start_up_is_light(words: list[str], daemon: Daemon) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS, *words], capture_output=True, text=True, check=True)
    assert done.stdout
    imported = set(done.stderr.split())
    assert "click" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize("words", [("--socket", "{}", "status"), ("status", "--socket", "{}")])
def test_the_socket_can_be_named(words: tuple[str, ...], daemon: Daemon, crctl_: Crctl,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRD_API__SOCKET", "/nowhere/crd.sock")
    assert crctl_.json(*(word.format(daemon.path) for word in words))["pid"] == 99


def test_no_daemon(crctl_: Crctl, tmp_path: Path) -> None:
    error = crctl_.error("status", "--socket", str(tmp_path / "none"), status=10)
    assert error["error"] == "api.daemon-unavailable"
    assert "crd run" in error["hint"]
    crctl_("status", "--socket", str(tmp_path / "none"), status=10)
    assert crctl_.err.startswith(f"crctl: there is no socket {tmp_path}/none\n")


@pytest.mark.parametrize("words", [["nothing"], ["status", "extra"], ["show"], ["images", "--sort"], ["request"]])
def test_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(crctl, words) == 2
    assert capsys.readouterr().err


def test_the_installed_program(daemon: Daemon) -> None:
    done = subprocess.run([BIN / "crctl", "images", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)[0]["crid"] == 42
    done = subprocess.run([BIN / "crctl", "--version"], capture_output=True, text=True, check=True)
    assert "crctl, version" in done.stdout


@pytest.mark.usefixtures("daemon")
def test_a_reader_that_leaves_is_no_reason_to_complain() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([BIN / "crctl", "images", "--json"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == b""


@pytest.mark.usefixtures("daemon")
def test_output_that_cannot_be_written_is_a_failure() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([BIN / "crctl", "images"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "crctl: standard output: No space left on device\n"
