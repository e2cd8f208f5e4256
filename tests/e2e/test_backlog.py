"""Connections that wait to be accepted: those from within are waited for, those from outside are told of as lost."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.support.direct import crd
from tests.support.victims import Program, python_script, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

SERVER = """
import os, socket, time
from pathlib import Path
LISTENERS = {"tcp": lambda: socket.create_server(("127.0.0.1", 0)),
             "tcp6": lambda: socket.create_server(("::1", 0), family=socket.AF_INET6),
             "unix": lambda: socket.socket(socket.AF_UNIX)}
listener = LISTENERS[KIND]()
if KIND == "unix":
    listener.bind("socket")
    listener.listen()
own = None
if OWN:
    own = socket.socket(listener.family)
    own.connect(listener.getsockname())
name = listener.getsockname()
Path("port").write_text(str(name[1]) if KIND != "unix" else name)
os.rename("port", "ready")
while not os.path.exists("go"):
    time.sleep(0.005)
held = []
while True:
    held.append(listener.accept()[0])
    held[-1].send(b"welcome")
    if own:
        Path("said").write_bytes(own.recv(7))
"""


def server(directory: Path, kind: str, *, own: bool) -> Program:
    program = python_script(directory, f"KIND, OWN = {kind!r}, {own}\n{SERVER}")
    until("readiness", (directory / "ready").exists)
    return program


def connected(directory: Path, kind: str) -> socket.socket:
    where = (directory / "ready").read_text()
    if kind == "unix":
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(directory / where))
    else:
        client = socket.create_connection(("::1" if kind == "tcp6" else "127.0.0.1", int(where)))
    client.settimeout(60)
    return client


def is_told_of_the_end(client: socket.socket) -> bool:
    try:
        return client.recv(7) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_one_from_outside(kind: str, tmp_path: Path) -> None:
    with server(tmp_path, kind, own=False) as program, closing(connected(tmp_path, kind)) as first:
        for number in range(2):
            done = crd("checkpoint", str(program.pid), "-o", tmp_path / f"{number}.image", home=tmp_path)
            assert done.returncode == 0, done.stderr
            assert "1 connection from outside had not been accepted yet" in done.stderr
        (tmp_path / "go").touch()
        assert first.recv(7) == b"welcome", "it waits on when the target runs on"
        (tmp_path / "go").unlink()
        program.kill()
        assert crd("restart", "-i", tmp_path / "0.image", home=tmp_path).returncode == 0
        with closing(connected(tmp_path, kind)) as second:
            done = crd("checkpoint", str(program.pid), "-o", tmp_path / "image", "--kill", home=tmp_path)
            assert done.returncode == 0, done.stderr
            assert is_told_of_the_end(second)
        program.wait_gone()
        assert crd("restart", "-i", tmp_path / "image", home=tmp_path).returncode == 0
        (tmp_path / "go").touch()
        with closing(connected(tmp_path, kind)) as third:
            assert third.recv(7) == b"welcome"


@pytest.mark.parametrize("kind", ["tcp", "tcp6", "unix"])
def test_one_from_within(kind: str, tmp_path: Path) -> None:
    with server(tmp_path, kind, own=True) as program:
        done = crd("checkpoint", str(program.pid), "-o", tmp_path / "image", "--kill", home=tmp_path)
        assert done.returncode == 13
        assert "is a connection that has not been accepted" in done.stderr
        program.assert_unharmed()
        (tmp_path / "go").touch()
        until("the welcome", (tmp_path / "said").exists)
        assert (tmp_path / "said").read_text() == "welcome"
        done = crd("checkpoint", str(program.pid), "-o", tmp_path / "image", "--kill", home=tmp_path)
        assert done.returncode == 0, done.stderr
        program.wait_gone()
        assert crd("restart", "-i", tmp_path / "image", home=tmp_path).returncode == 0
        program.assert_unharmed()
