"""What the kernel tells of sockets by their inode (sock_diag(7)): who is at the other end, who waits to be accepted."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.errors import TargetError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

LISTENING, ESTABLISHED = 10, 1
"""States of TCP, which unix sockets borrow (include/net/tcp_states.h)."""

_NETLINK_SOCK_DIAG = 4
_BY_FAMILY, _ERROR, _DONE = 20, 2, 3
_DUMP = 0x300
_REQUEST_FLAG = 1
_HEADER = struct.Struct("<IHHII")  # struct nlmsghdr
_REQUEST = struct.Struct("<BBHIIIII")  # struct unix_diag_req
_ANSWER = struct.Struct("<BBBBIII")  # struct unix_diag_msg
_ATTRIBUTE = struct.Struct("<HH")
_ALL_STATES, _NO_COOKIE = 0xFFFF_FFFF, 0xFFFF_FFFF
_SHOW = 1 | 4 | 8 | 0x10 | 0x40  # name, peer, waiting connections, queue lengths, shutdown
_NAME, _FILE, _PEER, _WAITING, _LENGTHS, _SHUTDOWN = 0, 1, 2, 3, 4, 6
_ANSWER_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class UnixSocketInfo:
    """A unix socket.

    Attributes:
        kind: SOCK_*.
        state: LISTENING, ESTABLISHED or another.
        name: as in sun_path.
        peer: inode of the other end; 0 = none, or closed, or not yet accepted.
        waiting: inodes of connections that wait to be accepted; 0 for those that have been closed since.
        backlog: of a listening one.
        shutdown: 1 receiving, 2 sending.
    """

    kind: int
    state: int
    name: bytes = b""
    peer: int = 0
    waiting: tuple[int, ...] = ()
    backlog: int = 0
    shutdown: int = 0


class SocketDiagnosis:
    """Asks the kernel; a context manager."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._socket.close()

    def bound(self) -> tuple[set[tuple[int, int]], set[bytes]]:
        """Return the files that unix sockets are bound to, as (st_dev, st_ino modulo 2**32), and abstract names."""
        files: set[tuple[int, int]] = set()
        names: set[bytes] = set()
        self._ask(_REQUEST.pack(socket.AF_UNIX, 0, 0, _ALL_STATES, 0, 1 | 2, _NO_COOKIE, _NO_COOKIE), _DUMP)
        while True:
            answers = memoryview(self._socket.recv(_ANSWER_BYTES))
            while answers:
                length, kind, _, _, _ = _HEADER.unpack_from(answers)
                if kind in {_DONE, _ERROR}:
                    return files, names
                found = dict(_attributes(bytes(answers[_HEADER.size + _ANSWER.size:length])))
                if file := found.get(_FILE):
                    inode, device = struct.unpack("<II", file)
                    files.add((os.makedev(device >> 20, device & 0xFFFFF), inode))
                elif (name := found.get(_NAME, b"")).startswith(b"\0"):
                    names.add(name)
                answers = answers[length + -length % 4:]

    def _ask(self, request: bytes, flags: int = 0) -> None:
        self._socket.send(_HEADER.pack(_HEADER.size + len(request), _BY_FAMILY, _REQUEST_FLAG | flags, 0, 0) + request)

    def unix(self, inode: int) -> UnixSocketInfo | None:
        """Return what is known of a unix socket; None if none of our network namespace has that inode."""
        self._ask(_REQUEST.pack(socket.AF_UNIX, 0, 0, _ALL_STATES, inode, _SHOW, _NO_COOKIE, _NO_COOKIE))
        answer = self._socket.recv(_ANSWER_BYTES)
        length, kind, _, _, _ = _HEADER.unpack_from(answer)
        if kind == _ERROR:
            number = -int.from_bytes(answer[_HEADER.size:_HEADER.size + 4], "little", signed=True)
            if number == 2:  # ENOENT
                return None
            raise TargetError(f"sock_diag: {os.strerror(number)}", hint="The kernel needs CONFIG_UNIX_DIAG.")
        _, kind, state, _, _, _, _ = _ANSWER.unpack_from(answer, _HEADER.size)
        found = dict(_attributes(answer[_HEADER.size + _ANSWER.size:length]))
        waiting = found.get(_WAITING, b"")
        return UnixSocketInfo(
            kind, state, name=_plain(found.get(_NAME, b"")), peer=int.from_bytes(found.get(_PEER, b""), "little"),
            waiting=struct.unpack(f"<{len(waiting) // 4}I", waiting),
            backlog=int.from_bytes(found.get(_LENGTHS, b"")[4:8], "little") if state == LISTENING else 0,
            shutdown=found.get(_SHUTDOWN, b"\0")[0])


def _plain(name: bytes) -> bytes:
    """Return a name without the NUL that kernels end one of a file with."""
    return name if name.startswith(b"\0") else name.rstrip(b"\0")


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        yield kind, data[at + _ATTRIBUTE.size:at + length]
        at += max(length + -length % 4, _ATTRIBUTE.size)


def socket_inode(link: str) -> int | None:
    """Return the number of a socket from the link text of its descriptor, or None."""
    if link.startswith("socket:[") and link.endswith("]"):
        return int(link[len("socket:["):-1])
    return None
