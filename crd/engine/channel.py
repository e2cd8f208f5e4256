"""The messages between the daemon and a worker (``crd.engine.worker``), as the worker sends and receives them."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import msgspec

from crd.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

MESSAGE_BYTES_MAX = 1 << 20
FDS_MAX = 250
"""A pipe, and the notes of 64 processes (``crd.engine.userspace.notes``); or the listeners of as many processes."""


class Channel:
    """The worker's side of the socket."""

    def __init__(self, fd: int) -> None:
        """Take over the descriptor."""
        self._socket = socket.socket(fileno=fd)

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """Wait for a message; raises EOFError when the daemon is gone."""
        data, fds, _flags, _address = socket.recv_fds(self._socket, MESSAGE_BYTES_MAX, FDS_MAX)
        if not data:
            raise EOFError
        return msgspec.json.decode(data), list(fds)

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a message, with descriptors beside it."""
        socket.send_fds(self._socket, [msgspec.json.encode(message)], fds)

    def await_commit(self, event: str, result: Any, fds: Sequence[int] = ()) -> None:
        """Say how far we are, with descriptors beside it, and wait for the word to finish.

        Raises:
            EngineError: the daemon calls it off, or is gone.
        """
        self.send({"event": event, "result": result}, fds)
        try:
            answer, _ = self.receive()
        except (EOFError, OSError):
            answer = {}
        if answer != {"commit": True}:
            raise EngineError("called off")
