"""What clients hear who wait at a socket of systemd's while the daemon cannot start.

Nobody would answer them, and systemd would start a daemon that fails again and again for as long as one waits.
"""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from crd.api.access import ROOT_UID, peer_of
from crd.api.dispatch import failed
from crd.api.protocol import encode
from crd.errors import CrdError, DaemonUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

_AT_ONCE = 1024
"""More than a backlog holds: whoever connects without end shall not keep us here."""


@contextmanager
def turning_away(listener: int | None) -> Iterator[None]:
    """Tell all who wait at a socket why, if what the context does fails; None: there is no socket yet."""
    if listener is None:
        yield
        return
    with socket.socket(fileno=os.dup(listener)) as waiting:  # the descriptor itself is the server's, which closes it
        try:
            yield
        except CrdError as error:
            _turn_away(waiting, error)
            raise


def _turn_away(waiting: socket.socket, error: CrdError) -> None:
    waiting.setblocking(False)
    with suppress(OSError):  # nobody is left
        for _ in range(_AT_ONCE):
            connection, _address = waiting.accept()
            with connection, suppress(OSError):  # it is gone
                connection.setblocking(False)
                connection.sendall(encode(failed(_told(connection, error))))


def _told(connection: socket.socket, error: CrdError) -> DaemonUnavailable:
    """Return what is for the eyes of who connected: settings and paths are root's."""
    if peer_of(connection, None).uid == ROOT_UID:
        return DaemonUnavailable(f"the daemon does not run: {error.message}", hint=error.hint)
    return DaemonUnavailable("the daemon does not run", hint="Its log says why: journalctl -u crd.")
