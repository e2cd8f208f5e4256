"""Connections of TCP to processes outside, of a target that is to be killed: their other ends are not told."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from crd.engine.userspace.fds import network_hold, tcp_repair
from crd.engine.userspace.fds.network_hold import Hold

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from crd.engine.userspace.fds.network_hold import Ends


class Leaving:
    """From the stop on nothing comes in any more; a context manager, after which all is as before unless they left.

    Where the kernel has no nf_tables the other ends are told as they are by any kill.
    """

    def __init__(self) -> None:
        """Take none yet."""
        self._hold: Hold | None = None
        self._socks: dict[Ends, socket.socket] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for sock in self._socks.values():
            sock.close()
        if self._hold:
            self._hold.close()

    def take(self, connections: Mapping[Ends, socket.socket]) -> None:
        """Hold connections; ``sock`` is a duplicate of the target's socket, of which another one is made."""
        with suppress(OSError):
            self._hold = Hold()
            self._hold.add([*connections])
            self._socks = {ends: socket.socket(fileno=os.dup(sock.fileno())) for ends, sock in connections.items()}

    def leave(self) -> None:
        """Have the sockets close without a word, and hold their connections for whoever restarts the image.

        All processes of the target have got SIGKILL: they run no more, and what they close we still have.
        """
        with suppress(OSError):
            for sock in self._socks.values():
                tcp_repair.tell(sock, tcp_repair.REPAIR, tcp_repair.ON)
            if self._socks:
                network_hold.keep([*self._socks])
