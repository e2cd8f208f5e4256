"""Programs as people run them, under load: saved by ``crd checkpoint``, killed, brought back by ``crd restart``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.daemon import BIN, eventually
from tests.support.ports import free_port
from tests.support.victims import Program

CLIENT = """
import os, pathlib, socket, subprocess, sys, threading, time

def served(*words, **options):
    output = open("server.log", "ab")
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **options)

def eventually(ask):
    deadline = time.monotonic() + 60
    while not (answer := ask()):
        if time.monotonic() > deadline:
            raise TimeoutError(ask)
        time.sleep(0.02)
    return answer

def connected(*address):
    def ask():
        sock = socket.socket(socket.AF_UNIX if len(address) == 1 else socket.AF_INET)
        try:
            sock.connect(address[0] if len(address) == 1 else address)
            return sock
        except OSError:
            sock.close()
    return eventually(ask)

acknowledged = open("acknowledged", "a", buffering=1)

def acknowledge(number):
    acknowledged.write(f"{number}\\n")
"""
"""What clients begin with, after a ``port``: ``served`` starts the server, ``acknowledge`` notes what it confirmed."""


class Served(Program):
    """A tree of a client, which is the first process, and its server, which the client starts.

    The client numbers what it does, and asserts that each answer is the one that follows from all before.  So a server
    that knows less, or more, than the client ends the client.
    """

    def __init__(self, directory: Path, client: str, *arguments: str) -> None:
        script = directory / "client.py"
        script.write_text(f"port = {free_port()}\n{CLIENT}{client}")
        super().__init__([sys.executable, "-u", script, *arguments], directory, name="client")
        try:
            eventually("an answer", lambda: self.is_alive() and len(self.acknowledged()) > 3)
        except BaseException:
            self.close()
            raise

    def is_alive(self) -> bool:
        """Whether the client is; raises AssertionError with what it said if it is not."""
        log = self.directory / "server.log"
        assert self.is_running(), f"{self.stderr()} {log.read_text() if log.exists() else ''}"
        return True

    def acknowledged(self) -> list[int]:
        """Return what the server has confirmed, in that order; after a restart from where the image was taken."""
        log = self.directory / "acknowledged"
        return [int(line) for line in log.read_text().split("\n")[:-1]] if log.exists() else []

    def goes_on(self, answers: int = 5) -> None:
        """Wait for more answers, each of which follows from the one before."""
        before = len(self.acknowledged())
        eventually("answers", lambda: self.is_alive() and len(self.acknowledged()) > before + answers)
        since = self.acknowledged()[before + 1:]
        assert since == list(range(since[0], since[0] + len(since)))

    def cycle(self, name: str = "image") -> None:
        """Save it while it works, kill it, and bring it back; it goes on from where it was saved."""
        image = checkpoint(self, name)
        known = self.acknowledged()
        self.goes_on(1)
        self.kill_tree()
        os.truncate(self.file("stderr"), 0)  # a worker whose parent is killed first may begin to complain of that
        self.brought_back(image, known)

    def saved_and_killed(self) -> Path:
        """Save it and have crd kill it at that very moment, for what must not go on without the image: files."""
        family = self.family()
        image = checkpoint(self, "image", "--kill")
        self.wait_gone()
        eventually("their end", lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))
        return image

    def brought_back(self, image: Path, known: list[int] | None = None) -> None:
        """Bring it back; it goes on from what it knew when the image was taken, or at most one answer further."""
        told = len(self.acknowledged())
        known = known or self.acknowledged()
        restart(image, self)
        self.goes_on()
        since = self.acknowledged()[told:]
        assert known[0] <= since[0] <= known[-1] + 1, f"saved after {known[-1]}, went on with {since[0]}"
        assert since == list(range(since[0], since[0] + len(since)))


def run(program: Program, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``crd``; its counter is the program's own."""
    return subprocess.run([BIN / "crd", *words], capture_output=True, text=True, check=False, timeout=120,
                          env={**os.environ, "CRD_ENGINE__CRID_FILE": str(program.directory / "crid")})


def checkpoint(program: Program, name: str = "image", *options: str) -> Path:
    """Save a program, which runs on unless the options say otherwise."""
    image = program.directory / name
    done = run(program, "checkpoint", str(program.pid), "-o", image, *options)
    assert done.returncode == 0, done.stderr
    return image


def restart(image: Path, program: Program, *options: str) -> None:
    """Bring a program back under its old numbers, all as it was."""
    done = run(program, "restart", "-i", image, "--json", *options)
    assert done.returncode == 0, done.stderr
    notes = json.loads(done.stdout)["notes"]
    assert notes == [], notes
