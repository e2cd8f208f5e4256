"""TCP_REPAIR: how a socket of TCP is told what it has never seen (include/uapi/linux/tcp.h)."""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING

from crd.engine.userspace.fds import lingering, socket_options
from crd.errors import RestartError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.image.objects import InetSocket
    from crd.image.sockets import SocketOption

ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2, CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING = 1, 4, 5, 7, 8, 9, 11
"""TCP_* of include/net/tcp_states.h."""

REPAIR, REPAIR_QUEUE, QUEUE_SEQUENCE, REPAIR_OPTIONS, TIMESTAMP, REPAIR_WINDOW = 19, 20, 21, 22, 24, 29
ON, OFF, OFF_SILENTLY = 1, 0, -1
NO_QUEUE, RECEIVE_QUEUE, SEND_QUEUE = 0, 1, 2
MAXIMUM_SEGMENT, WINDOW_SCALE, SACK_PERMITTED, TIMESTAMPS = 2, 3, 4, 8
"""What the ends have agreed upon: TCPOPT_* of include/net/tcp.h."""
WINDOW = struct.Struct("<5I")
"""struct tcp_repair_window."""
ROOM_BYTES = 16 << 20
PIECE_BYTES = 32 << 10

_OPTION = struct.Struct("<II")
_SNDBUFFORCE, _RCVBUFFORCE = 32, 33


def tell(sock: socket.socket, option: int, value: int | bytes) -> None:
    """Set an option of TCP; raises OSError."""
    sock.setsockopt(socket.IPPROTO_TCP, option, value)


def populate(record: InetSocket, sock: socket.socket, sequences: tuple[int, int], agreed: Sequence[tuple[int, int]],
             received: Sequence[bytes]) -> None:
    """Tell a fresh socket that it is connected, and what it has received; it stays in repair.

    Args:
        record: what it is.
        sock: the socket.
        sequences: of the first byte of what it has sent and received, and of which the other end or the program knows
            nothing.
        agreed: options of the connection.
        received: what its program has not read.

    Raises:
        OSError: these privileges or this kernel do not allow it.
        RestartError: there is no room.
    """
    socket_options.restart(sock, [one for one in record.options if is_early(one)])
    tell(sock, REPAIR, ON)
    make_room(sock)
    scope = (0, record.scope) if record.family == socket.AF_INET6 else ()
    sock.bind((record.local_address, record.local_port, *scope))
    for queue, sequence in zip((SEND_QUEUE, RECEIVE_QUEUE), sequences, strict=True):
        tell(sock, REPAIR_QUEUE, queue)
        tell(sock, QUEUE_SEQUENCE, (sequence & 0xFFFF_FFFF).to_bytes(4, "little"))
    _connect(sock, record, (record.remote_address, record.remote_port, *scope))
    tell(sock, REPAIR_OPTIONS, b"".join(_OPTION.pack(*one) for one in agreed))
    fill(sock, RECEIVE_QUEUE, received)


def _connect(sock: socket.socket, record: InetSocket, remote: tuple[str | int, ...]) -> None:
    """Connect, if need be in the place of the connection that the image before this one was restarted with.

    That one lingers when it was killed, and the kernel lets it be replaced only if it had timestamps
    (tcp_twsk_unique in net/ipv4/tcp_ipv4.c).
    """
    try:
        sock.connect(remote)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL or not lingering.remove(record.local_port, record.remote_port):
            raise
        sock.connect(remote)


def make_room(sock: socket.socket) -> None:
    """Let it hold whatever waits in a connection."""
    sock.setsockopt(socket.SOL_SOCKET, _SNDBUFFORCE, ROOM_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, ROOM_BYTES)


def fill(sock: socket.socket, queue: int, data: Sequence[bytes]) -> None:
    """Put bytes into a queue of a socket in repair; raises RestartError if there is no room."""
    tell(sock, REPAIR_QUEUE, queue)
    for piece in data:
        if sock.send(piece) != len(piece):
            raise RestartError("what waits in a connection of TCP does not fit")
    tell(sock, REPAIR_QUEUE, NO_QUEUE)


def is_early(option: SocketOption) -> bool:
    """Whether an option can only be set before the socket has a name."""
    return (option.level, option.name) == (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def in_pieces(data: bytes) -> list[bytes]:
    """Cut what is in a queue."""
    return [data[at:at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]
