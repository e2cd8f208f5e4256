"""What systemd and its services tell each other: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3) ..."""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_FIRST_PASSED_FD = 3
_TOKEN_BYTES = 6
_SIGNS_IN_TIME = 3
"""Signs of life in the time that systemd waits for one: two may be late."""


def is_booted() -> bool:
    """Return whether systemd runs this machine (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def notify(*assignments: str, fds: Sequence[int] = ()) -> None:
    """Tell systemd, if it wants to know: ``READY=1``, ``STATUS=...``, ``STOPPING=1``, ``WATCHDOG=1``, ``FDSTORE=1``.

    Args:
        assignments: what is told.
        fds: go with ``FDSTORE=1``.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        socket.send_fds(sender, ["\n".join(assignments).encode()], fds)


def keeps() -> bool:
    """Return whether there is somebody who could ``keep`` descriptors."""
    return "NOTIFY_SOCKET" in os.environ


def new_name(kind: str) -> str:
    """Return a name for a descriptor that nothing was kept under before."""
    return f"{kind}-{secrets.token_hex(_TOKEN_BYTES)}"


def keep(name: str, fd: int | None, *, polled: bool = True) -> None:
    """Have systemd keep a descriptor, or none, under a name for the daemon after us: it is among its ``passed_fds``.

    It hears of this before it hears of our end, whatever that is: what it waits for stands in that order.

    Args:
        name: at most 255 characters of ASCII, and no colon.
        fd: the descriptor; None: what was kept goes.
        polled: it is not kept any more once it says that it has hung up (FDPOLL of sd_notify(3)).
    """
    notify("FDSTOREREMOVE=1", f"FDNAME={name}")
    if fd is not None:
        notify("FDSTORE=1", f"FDNAME={name}", *(() if polled else ("FDPOLL=0",)), fds=[fd])


def watchdog_seconds() -> float:
    """Return how often systemd is to get a sign of life, 0 = never."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    return int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6 / _SIGNS_IN_TIME


def passed_fds() -> dict[str, int]:
    """Return the descriptors that systemd passes, from socket units and its store, by name; the last of each name."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    fds = {name: fd for fd, name in enumerate(names[:int(os.environ.get("LISTEN_FDS", "0"))], _FIRST_PASSED_FD)}
    for fd in fds.values():
        os.set_inheritable(fd, False)
    return fds
