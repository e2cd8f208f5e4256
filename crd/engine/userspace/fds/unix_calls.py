"""Calls that the vessel makes itself, since the kernel remembers who made them (SO_PEERCRED of unix(7))."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crd.native.syscall import NR, pidfd_getfd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crd.engine.userspace.fds.kind import Making

_SIOCUNIXFILE = 0x89E0
_UNCHANGED = (1 << 32) - 1
_PAIR = struct.Struct("<ii")


@contextmanager
def _as_user(making: Making, who: tuple[int, int]) -> Iterator[None]:
    """Have the calls in between made with another effective uid and gid; as nobody but root we have none to choose."""
    batch = making.vessel.batch
    ours = os.geteuid(), os.getegid()
    if ours[0] or who == ours:
        yield
        making.vessel.run()
        return
    batch.call(NR.SETRESGID, _UNCHANGED, who[1], _UNCHANGED)
    batch.call(NR.SETRESUID, _UNCHANGED, who[0], _UNCHANGED)
    yield
    batch.call(NR.SETRESUID, _UNCHANGED, 0, _UNCHANGED)
    batch.call(NR.SETRESGID, _UNCHANGED, ours[1], _UNCHANGED)
    making.vessel.run()


def socketpair(making: Making, kind: int, who: tuple[int, int]) -> tuple[int, int]:
    """Make two connected sockets; return our descriptors of them."""
    vessel = making.vessel
    place = vessel.batch.data(bytes(_PAIR.size))
    with _as_user(making, who):
        vessel.batch.call(NR.SOCKETPAIR, socket.AF_UNIX, kind, 0, place, what="socketpair")
    theirs = _PAIR.unpack(vessel.batch.read(place, _PAIR.size))
    pidfd = os.pidfd_open(vessel.pid)
    try:
        ours = pidfd_getfd(pidfd, theirs[0]), pidfd_getfd(pidfd, theirs[1])
    finally:
        os.close(pidfd)
    for fd in theirs:
        vessel.batch.call(NR.CLOSE, fd)
    vessel.run()
    return ours


def listen(making: Making, fd: int, backlog: int, who: tuple[int, int]) -> None:
    """Have a socket of ours listen."""
    batch = making.vessel.batch
    pulled = making.broker.pull(batch, fd)
    with _as_user(making, who):
        batch.call(NR.LISTEN, pulled, backlog, what="listen")
    batch.call(NR.CLOSE_RANGE, 0, _UNCHANGED, 0)
    making.vessel.run()


def connect(making: Making, fd: int, listener: int, who: tuple[int, int]) -> None:
    """Have a socket of ours connect to a listener of ours, without waiting."""
    os.set_blocking(fd, False)
    with socket.socket(fileno=os.dup(listener)) as sock:
        name = sock.getsockname()
        if isinstance(name, str):
            name = f"/proc/{os.getpid()}/fd/{making.broker.hold(fcntl.ioctl(sock, _SIOCUNIXFILE))}".encode() + b"\0"
    _connect(making, fd, name, b"", who)


def connect_to(making: Making, fd: int, path: Path, said: bytes, who: tuple[int, int]) -> None:
    """Have a socket of ours connect to another process's listener, without waiting, and say something."""
    os.set_blocking(fd, False)
    _connect(making, fd, os.fsencode(path) + b"\0", said, who)


def _connect(making: Making, fd: int, name: bytes, said: bytes, who: tuple[int, int]) -> None:
    batch = making.vessel.batch
    address = socket.AF_UNIX.to_bytes(2, "little") + name
    pulled = making.broker.pull(batch, fd)
    with _as_user(making, who):
        batch.call(NR.CONNECT, pulled, batch.data(address), len(address), what="connect")
        if said:
            batch.call(NR.WRITE, pulled, batch.data(said), len(said), what="write")
    batch.call(NR.CLOSE_RANGE, 0, _UNCHANGED, 0)
    making.vessel.run()


def accept_from(listener: int, making: Making) -> int:
    """Accept what the vessel has connected; a stranger that was quicker has to come again."""
    with socket.socket(fileno=os.dup(listener)) as sock:
        while True:
            accepted, _ = sock.accept()
            pid, _, _ = struct.unpack("<iII", accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if pid == making.vessel.pid:
                return accepted.detach()
            accepted.close()
