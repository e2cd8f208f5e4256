"""Connections of TCP that are over and linger for a minute (TIME_WAIT): they keep a port from whoever had it before."""

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
_SOCKET_BYTES = 48  # struct inet_diag_sockid: ports in network order first
_ANSWER_SOCKET_AT = 4  # in struct inet_diag_msg
_TIME_WAIT = 6
_BUFFER_BYTES = 64 << 10


def remove(port: int) -> int:
    """Have the kernel forget the connections that linger at a port of ours; return how many those were.

    Needs CONFIG_INET_DIAG_DESTROY; without it none is.
    """
    removed = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as diagnosis:
        for family in (socket.AF_INET, socket.AF_INET6):
            wanted = _WANTED.pack(family, socket.IPPROTO_TCP, 0, 0, 1 << _TIME_WAIT)
            found = [one for one in _lingering(diagnosis, wanted) if int.from_bytes(one[:2], "big") == port]
            for one in found:
                _send(diagnosis, _DESTROY, _REQUEST | _ACKNOWLEDGE, wanted + one)
                answer = diagnosis.recv(_BUFFER_BYTES)
                removed += int.from_bytes(answer[_HEADER.size:_HEADER.size + 4], "little") == 0
    return removed


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
