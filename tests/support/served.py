"""Programs under the filter of ``crctl run``, whose calls a test serves itself."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from crd.engine.api import CheckpointOptions, CheckpointResult, RestartResult, ServedCall, checkpoint
from crd.engine.crid import CridCounter
from crd.engine.served import Service, serve
from crd.native.notification import Notification, receive
from tests.support.victims import PATIENCE_SECONDS, Program

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_UNDER_THE_FILTER = """
import os, socket, sys
from crd import syscalls
listener = syscalls.install()
channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
channel.connect(sys.argv[1])
socket.send_fds(channel, [b"listener"], [listener])
os.execv(sys.argv[2], sys.argv[2:])
"""


def compiled(directory: Path, source: str) -> Path:
    """Return the program of a C source that knows nothing of crd but two numbers."""
    path = directory / "caller"
    subprocess.run(["gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-unused-result", "-O1", "-pthread",
                    "-x", "c", "-o", path, "-"], input=source.encode(), check=True)
    return path


class Served(Program):
    """A program under the filter; the one who made it is its supervisor."""

    def __init__(self, argv: Sequence[str | Path], directory: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as meeting:
            meeting.bind(str(directory / "meeting"))
            meeting.listen()
            super().__init__([sys.executable, "-c", _UNDER_THE_FILTER, directory / "meeting", *argv], directory,
                             name="caller")
            meeting.settimeout(PATIENCE_SECONDS)
            channel, _ = meeting.accept()
            with channel:
                [self.listener] = socket.recv_fds(channel, 16, 1)[1]
        (directory / "meeting").unlink()
        self._crids = CridCounter(directory / "crid")

    def call(self) -> Notification:
        """Wait for a call, and receive it."""
        return received(self.listener)

    def is_called(self) -> bool:
        """Whether a call comes within a moment."""
        return bool(_polled(self.listener, 0.01))

    def called(self) -> Notification | None:
        """Receive a call that comes within a moment, unless a signal takes it back."""
        return receive(self.listener) if self.is_called() else None

    def carry_out(self, call: Notification, **options: object) -> ServedCall:
        """Carry out a call that was received."""
        return serve(self.listener, call, Service(
            crids=self._crids, confirm=self._confirm, options=CheckpointOptions(**options)))  # type: ignore[arg-type]

    def _confirm(self, ready: RestartResult) -> None:
        """Serve what is restarted by a call, too."""
        self.replaced_by, self.next_listeners = ready, [*map(os.dup, ready.listeners)]

    def serve(self, **options: object) -> ServedCall:
        """Wait for a call, and carry it out."""
        return self.carry_out(self.call(), **options)

    def saved_from_outside(self, path: Path) -> CheckpointResult:
        """Take an image of it as anybody else does."""
        with path.open("wb") as file:
            return checkpoint(self.pid, file.fileno(), crids=self._crids)

    def hang_up(self) -> None:
        """Serve no more."""
        if self.listener >= 0:
            os.close(self.listener)
        self.listener = -1

    def close(self) -> None:
        self.hang_up()
        super().close()

    def output(self) -> str:
        """Return what it has printed."""
        return self.file("stdout").read_text()


def received(listener: int) -> Notification:
    """Wait for a call of a listener, and receive it."""
    while True:
        ready = _polled(listener, PATIENCE_SECONDS)
        assert ready, "no call within a minute"
        assert ready[0][1] & select.POLLIN, "there is nobody left who could call"
        if call := receive(listener):
            return call


def _polled(listener: int, seconds: float) -> list[tuple[int, int]]:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return poll.poll(seconds * 1000)
