"""Connections of TCP with both ends inside the image: what waits in them, and how they come to be again.

Nothing is asked of the network: each end is told its addresses and sequence numbers (TCP_REPAIR of
include/uapi/linux/tcp.h), and only then do they speak to each other.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

from crd.engine.userspace.fds import socket_options
from crd.engine.userspace.fds.kind import TryLaterError
from crd.errors import Obstacle, RestartError, TargetUnsupported
from crd.image.objects import InetConnection, InetMessage, InetSocket
from crd.target import inet_obstacles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.fds.kind import Making
    from crd.image.objects import SocketOption

ESTABLISHED, FIN_WAIT_2, CLOSE_WAIT = 1, 5, 8
"""The states of a connection that nothing is on the way in."""

OF_THE_CONNECTION = {(socket.IPPROTO_TCP, name) for name in (2, 10, 12)}
"""TCP_MAXSEG, TCP_WINDOW_CLAMP and TCP_QUICKACK: options that a connection finds out by itself."""

_REPAIR, _REPAIR_QUEUE, _QUEUE_SEQUENCE, _REPAIR_OPTIONS = 19, 20, 21, 22
_ON, _OFF = 1, 0
_RECEIVE_QUEUE, _SEND_QUEUE = 1, 2
_SEQUENCES = 1_000_000, 2_000_000
_MAXIMUM_SEGMENT, _WINDOW_SCALE, _SACK_PERMITTED = 2, 3, 4
_OPTION = struct.Struct("<II")
_OPTIONS = (_OPTION.pack(_MAXIMUM_SEGMENT, 1460) + _OPTION.pack(_WINDOW_SCALE, 7 | 7 << 16)
            + _OPTION.pack(_SACK_PERMITTED, 0))
_SNDBUFFORCE, _RCVBUFFORCE = 32, 33
_ROOM_BYTES = 16 << 20
_PIECE_BYTES = 32 << 10


def acknowledge(sock: socket.socket) -> None:
    """Have an end acknowledge what it has received: else it may wait a moment, and the other end does not know.

    The value also says whether it is to go on as eager as that (tcp_sock_set_quickack in net/ipv4/tcp.c).
    """
    eager = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1 if eager else 2)


def waiting(one: Description, sock: socket.socket) -> Iterator[InetMessage]:
    """Yield what has been received and not been read.

    Raises:
        TryLaterError: the other end has not received all yet.
    """
    if inet_obstacles.unsent(sock):
        raise TryLaterError(Obstacle("fd.tcp", one.name, "has sent what the other end has no room for",
                                     "Try again when the program has read it."))
    length = inet_obstacles.unread(sock)
    data = sock.recv(length, socket.MSG_PEEK | socket.MSG_DONTWAIT) if length else b""
    if len(data) != length:
        raise TryLaterError(Obstacle("fd.tcp", one.name, "has urgent data", "Try again when the program has read it."))
    for at in range(0, length, _PIECE_BYTES):
        yield InetMessage(socket=one.objref, address="", port=0, data=data[at:at + _PIECE_BYTES])


def connections(found: Sequence[Description], records: dict[int, InetSocket]) -> Iterator[InetConnection]:
    """Yield who is connected to whom.

    Raises:
        TargetUnsupported: one is connected to somebody else.
    """
    names = {one.objref: one.name for one in found}
    by_local = {_local(record): record for record in records.values() if _is_connection(record)}
    for record in by_local.values():
        other = by_local.get(_remote(record))
        if other is None or _remote(other) != _local(record) or other.family != record.family:
            raise TargetUnsupported(reasons=[Obstacle("fd.tcp", names[record.objref], *inet_obstacles.CONNECTED)])
        if record.objref < other.objref:
            yield InetConnection(one=record.objref, other=other.objref)


def _is_connection(record: InetSocket) -> bool:
    return record.kind == socket.SOCK_STREAM and bool(record.remote_port)


def _local(record: InetSocket) -> tuple[str, int, str, int]:
    return record.local_address, record.local_port, record.remote_address, record.remote_port


def _remote(record: InetSocket) -> tuple[str, int, str, int]:
    return record.remote_address, record.remote_port, record.local_address, record.local_port


def _is_early(option: SocketOption) -> bool:
    """Whether an option can only be set before the socket has a name."""
    return (option.level, option.name) == (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def restart(making: Making) -> None:
    """Make all connections, whose sockets are there; when all are, they speak.

    Raises:
        RestartError: these privileges or this kernel do not allow it.
    """
    ends: list[tuple[InetSocket, socket.socket]] = []
    try:
        for connection in making.plan.of(InetConnection):
            for objref, sequences in ((connection.one, _SEQUENCES), (connection.other, _SEQUENCES[::-1])):
                record: InetSocket = making.plan.objects[objref]
                sock = socket.socket(fileno=os.dup(making.ours[objref]))
                ends.append((record, sock))
                _repair(record, sock, sequences, [one for one in making.plan.of(InetMessage) if one.socket == objref])
        for _, sock in ends:
            sock.setsockopt(socket.IPPROTO_TCP, _REPAIR, _OFF)  # and asks the other end how much room it has
        for record, sock in ends:
            socket_options.restart(sock, [one for one in record.options if not _is_early(one)])
            if record.shutdown:
                sock.shutdown(socket.SHUT_WR)
    except OSError as error:
        raise RestartError(f"a connection of TCP: {error.strerror}", errno=error.errno) from error
    finally:
        for _, sock in ends:
            sock.close()


def _repair(record: InetSocket, sock: socket.socket, sequences: tuple[int, int], data: Sequence[InetMessage]) -> None:
    """Tell a socket that it is connected, and what it has received."""
    def tell(option: int, value: int | bytes) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)

    socket_options.restart(sock, [one for one in record.options if _is_early(one)])
    sending, receiving = sequences
    tell(_REPAIR, _ON)
    sock.setsockopt(socket.SOL_SOCKET, _SNDBUFFORCE, _ROOM_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _ROOM_BYTES)
    scope = (0, record.scope) if record.family == socket.AF_INET6 else ()
    sock.bind((record.local_address, record.local_port, *scope))
    for queue, sequence in ((_SEND_QUEUE, sending), (_RECEIVE_QUEUE, receiving - sum(len(one.data) for one in data))):
        tell(_REPAIR_QUEUE, queue)
        tell(_QUEUE_SEQUENCE, sequence)
    sock.connect((record.remote_address, record.remote_port, *scope))
    tell(_REPAIR_OPTIONS, _OPTIONS)
    tell(_REPAIR_QUEUE, _RECEIVE_QUEUE)
    for one in data:
        if sock.send(one.data) != len(one.data):
            raise RestartError("what waits in a connection does not fit")
    tell(_REPAIR_QUEUE, 0)
