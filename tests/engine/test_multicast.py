"""Groups that a socket is a member of at an interface that another has the name of after a restart, or none has."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.engine.images import restarted, taken
from tests.support.victims import python_script, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.victims import Program

pytestmark = pytest.mark.root

MEMBER = """
import signal, socket, struct, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

def group():
    number = socket.if_nametoindex("NAME")
    return struct.pack("<I4xHH4s", number, 2, 0, bytes([239, 7, 7, 7])).ljust(136, b"\\0")

def leave(*_):
    try:
        sock.setsockopt(0, 45, group())  # MCAST_LEAVE_GROUP
        open("left", "w").close()
    except OSError as error:
        print(error, file=open("wrong", "w"))

signal.signal(signal.SIGUSR1, leave)
sock.setsockopt(0, 42, group())  # MCAST_JOIN_GROUP
open("ready", "w").close()
while True: time.sleep(1)
"""


@pytest.fixture
def interface() -> Iterator[str]:
    """An interface for the time of a test, which may delete it."""
    name = f"crdg{os.getpid()}"
    add(name)
    yield name
    delete(name)


def add(name: str) -> None:
    for words in (["add", name, "type", "veth", "peer", "name", f"{name}p"], ["set", name, "up", "multicast", "on"]):
        subprocess.run(["ip", "link", *words], check=True)


def delete(name: str) -> None:
    subprocess.run(["ip", "link", "delete", name], check=False, stderr=subprocess.DEVNULL)


def member(directory: Path, interface: str) -> Program:
    return python_script(directory, MEMBER.replace("NAME", interface))


def test_the_interface_is_known_by_its_name(tmp_path: Path, interface: str) -> None:
    with member(tmp_path, interface) as program:
        until("it to join", (tmp_path / "ready").exists)
        image = taken(program)
        delete(interface)
        add(interface)
        assert restarted(image, program).notes == ()
        os.kill(program.pid, signal.SIGUSR1)
        until("it to leave", lambda: (tmp_path / "left").exists() or (tmp_path / "wrong").exists())
        assert not (tmp_path / "wrong").exists()


def test_without_the_interface_the_restart_says_what_is_missing(tmp_path: Path, interface: str) -> None:
    with member(tmp_path, interface) as program:
        until("it to join", (tmp_path / "ready").exists)
        image = taken(program)
        delete(interface)
        notes = restarted(image, program).notes
        assert [note for note in notes if f"no member of 239.7.7.7 at {interface}" in note]
        assert program.is_running()
