"""Connections of TCP that are over and linger for a minute (TIME_WAIT): they keep their ports from whoever had them."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NETLINK_SOCK_DIAG = 4
_BY_FAMILY, _DESTROY = 20, 21
_REQUEST, _ACKNOWLEDGE, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("<IHHII")  # struct nlmsghdr
_WANTED = struct.Struct("<BBBBI")  # struct inet_diag_req_v2, before the socket
_SOCKET_BYTES = 48  # struct inet_diag_sockid
_PORTS = struct.Struct(">HH")  # its beginning: ours and the other end's
_ANSWER_SOCKET_AT = 4  # in struct inet_diag_msg
_TIME_WAIT = 6
_BUFFER_BYTES = 64 << 10


def remove(port: int, remote_port: int = 0) -> int:
    """Have the kernel forget the connections that linger at a port of ours; return how many those were.

    Args:
        port: ours.
        remote_port: of the other end; 0: whatever it was.

    Needs CONFIG_INET_DIAG_DESTROY; without it none is.
    """
    removed = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as diagnosis:
        for family in (socket.AF_INET, socket.AF_INET6):
            wanted = _WANTED.pack(family, socket.IPPROTO_TCP, 0, 0, 1 << _TIME_WAIT)
            for one in [*_lingering(diagnosis, wanted)]:
                ours, theirs = _PORTS.unpack_from(one)
                if ours == port and theirs == (remote_port or theirs):
                    removed += _destroy(diagnosis, wanted + one)
    return removed


def _destroy(diagnosis: socket.socket, request: bytes) -> bool:
    _send(diagnosis, _DESTROY, _REQUEST | _ACKNOWLEDGE, request)
    return not any(diagnosis.recv(_BUFFER_BYTES)[_HEADER.size:_HEADER.size + 4])


def _send(diagnosis: socket.socket, kind: int, flags: int, request: bytes) -> None:
    diagnosis.send(_HEADER.pack(_HEADER.size + len(request), kind, flags, 0, 0) + request)


def _lingering(diagnosis: socket.socket, wanted: bytes) -> Iterator[bytes]:
    _send(diagnosis, _BY_FAMILY, _REQUEST | _DUMP, wanted + bytes(_SOCKET_BYTES))
    while True:
        answers = diagnosis.recv(_BUFFER_BYTES)
        while answers:
            length, kind, _, _, _ = _HEADER.unpack_from(answers)
            if kind in {_ERROR, _DONE}:
                return
            at = _HEADER.size + _ANSWER_SOCKET_AT
            yield answers[at:at + _SOCKET_BYTES]
            answers = answers[length + -length % 4:]
