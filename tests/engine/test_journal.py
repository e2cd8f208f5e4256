"""Programs whose output goes to the journal of systemd, which a listener stands in for."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.engine.api import plan
from crd.errors import ResourceChanged
from crd.native.syscall import kcmp
from crd.target import journal, preflight
from tests.engine.images import restarted, taken
from tests.engine.programs import interpreted
from tests.support.victims import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

BEGUN = b"teller\nteller.service\n29\n1\n0\n0\n0\n"
TELLS = f"""
import os, socket, time
def there(name):
    while not os.path.exists(name): time.sleep(0.01)
s = socket.socket(socket.AF_UNIX)
s.connect("stdout")
s.shutdown(socket.SHUT_RD)
s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
s.send({BEGUN!r} + b"one\\n")
if os.path.exists("forks") and os.fork() == 0:
    there("never")
open("ready", "w").close()
there("go")
s.send(b"two\\n")
there("never")
"""


@pytest.fixture
def stdout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A listener that is taken for the journal's; the program says its name in fewer words."""
    monkeypatch.setattr(journal, "_STDOUT", re.compile(b"(?:()|)stdout"))
    monkeypatch.setattr(journal, "directory", lambda _: tmp_path)
    before = Path.cwd()
    os.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("stdout")
        listener.listen()
        listener.settimeout(PATIENCE_SECONDS)
        os.chdir(before)
        yield listener


def accepted(listener: socket.socket, said: bytes) -> socket.socket:
    """Return the next connection that says something, which must be this."""
    while True:
        one, _ = listener.accept()
        one.settimeout(PATIENCE_SECONDS)
        heard = b""
        while len(heard) < len(said) and (more := one.recv(len(said) - len(heard))):
            heard += more
        if heard:
            assert heard == said
            return one
        one.close()  # somebody has looked whether we are there


def test_it_is_connected_anew_and_says_again_what_it_began_with(tmp_path: Path, stdout: socket.socket) -> None:
    with interpreted(tmp_path, TELLS) as program, accepted(stdout, BEGUN + b"one\n") as first:
        peer = os.fstat(first.fileno())
        (tmp_path / "streams").mkdir()
        (tmp_path / "streams" / f"{peer.st_dev}:{peer.st_ino}").write_text(
            "# This is private data. Do not parse\nPRIORITY=29\nLEVEL_PREFIX=1\nFORWARD_TO_SYSLOG=0\n"
            "STREAM_ID=0123\nIDENTIFIER=teller\nUNIT=teller\\x2eservice\n")
        found = preflight.check(program.pid, kcmp=kcmp)
        assert found.obstacles == ()
        assert len(found.notes) == 1
        assert "leads to the journal, and a restart connects it anew" in found.notes[0]
        image = taken(program)
        assert first.recv(10) == b""
        assert not restarted(image, program).notes
        with accepted(stdout, BEGUN) as second:
            assert second.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4) == program.pid.to_bytes(4, "little")
            assert preflight.check(program.pid, kcmp=kcmp).obstacles == ()
            (tmp_path / "go").touch()
            assert second.recv(10) == b"two\n"


def test_without_a_note_of_the_journal_it_begins_as_programs_do(tmp_path: Path, stdout: socket.socket) -> None:
    with interpreted(tmp_path, TELLS) as program, accepted(stdout, BEGUN + b"one\n"):
        restarted(taken(program), program)
        with accepted(stdout, f"{program.status()['Name']}\n\n6\n1\n0\n0\n0\n".encode()):
            program.assert_unharmed()


def test_a_host_without_a_journal(tmp_path: Path, stdout: socket.socket) -> None:
    with interpreted(tmp_path, TELLS) as program, accepted(stdout, BEGUN + b"one\n"):
        image = taken(program)
        stdout.close()
        with image.open("rb") as file:
            [clash] = plan(file.fileno()).clashes
        assert "the journal, which is not there" in clash["message"]
        with pytest.raises(ResourceChanged, match="stdout: Connection refused"):
            restarted(image)


def test_one_that_another_process_has_too_is_no_obstacle(tmp_path: Path, stdout: socket.socket) -> None:
    (tmp_path / "forks").touch()
    with interpreted(tmp_path, TELLS) as program, accepted(stdout, BEGUN + b"one\n"):
        *_, child = program.family()
        assert preflight.check(program.pid, kcmp=kcmp, tree=False).obstacles == ()
        assert preflight.check(child, kcmp=kcmp).obstacles == ()
