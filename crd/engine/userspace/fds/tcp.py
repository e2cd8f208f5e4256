"""Connections of TCP with both ends inside the image: what waits in them, and how they come to be again.

For those with the other end elsewhere see ``tcp_outside``.

Nothing is asked of the network: each end is told its addresses and sequence numbers (TCP_REPAIR of
include/uapi/linux/tcp.h), and only then do they speak to each other.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from crd.engine.userspace.fds import socket_options, tcp_repair, tcp_state
from crd.engine.userspace.fds.kind import TryLaterError
from crd.engine.userspace.fds.tcp_repair import populate, tell
from crd.errors import Obstacle, RestartError
from crd.image.objects import InetConnection, InetMessage, InetSocket, plain_address
from crd.target import inet_obstacles

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.fds.kind import Making

OF_THE_CONNECTION = {(socket.IPPROTO_TCP, name) for name in (2, 10, 12)}
"""TCP_MAXSEG, TCP_WINDOW_CLAMP and TCP_QUICKACK: options that a connection finds out by itself."""

SETTLED = {tcp_repair.ESTABLISHED, tcp_repair.FIN_WAIT_2, tcp_repair.CLOSE_WAIT}
"""The states of a connection that is neither being made nor closed."""

_SEQUENCES = 1_000_000, 2_000_000
_AGREED = ((tcp_repair.MAXIMUM_SEGMENT, 1460), (tcp_repair.WINDOW_SCALE, 7 | 7 << 16), (tcp_repair.SACK_PERMITTED, 0))


def acknowledge(sock: socket.socket) -> None:
    """Have an end acknowledge what it has received: else it may wait a moment, and the other end does not know.

    The value also says whether it is to go on as eager as that (tcp_sock_set_quickack in net/ipv4/tcp.c).
    """
    eager = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1 if eager else 2)


def waiting(one: Description, sock: socket.socket, arriving: bytes) -> Iterator[InetMessage]:
    """Yield what has been received and not been read, and what is on its way: that has arrived in the image.

    Raises:
        TryLaterError: some of it is urgent.
    """
    length = inet_obstacles.unread(sock)
    data = sock.recv(length, socket.MSG_PEEK | socket.MSG_DONTWAIT) if length else b""
    if len(data) != length:
        raise TryLaterError(Obstacle("fd.tcp", one.name, "has urgent data", "Try again when the program has read it."))
    for piece in tcp_repair.in_pieces(data + arriving):
        yield InetMessage(socket=one.objref, address="", port=0, data=piece)


def arriving(pairs: Iterable[InetConnection], socks: Mapping[int, socket.socket]) -> dict[int, bytes]:
    """Return what is on its way to an end, for which it may have no room, by objref.

    Most of what an end has sent and that was not acknowledged is not among that: it waits at the other end.

    Raises:
        EngineError: these privileges or this kernel do not let us look.
        TryLaterError: one changes all the time.
    """
    ways = [way for pair in pairs for way in ((pair.one, pair.other), (pair.other, pair.one))
            if inet_obstacles.unsent(socks[way[0]])]
    ends = [*dict.fromkeys(end for way in ways for end in way)]
    states = dict(zip(ends, tcp_state.look([socks[end] for end in ends]) if ends else (), strict=True))
    found = {}
    for sender, receiver in ways:
        ours, theirs = states[sender], states[receiver]
        if not ours or not theirs:
            raise TryLaterError(Obstacle("fd.tcp", "a connection", "changes all the time", "Try again."))
        left = (ours.send_sequence - theirs.receive_sequence) & 0xFFFF_FFFF
        found[receiver] = ours.sending[len(ours.sending) - left:] if left <= len(ours.sending) else b""
    return found


def paired(records: Iterable[InetSocket]) -> tuple[list[InetConnection], list[InetSocket]]:
    """Return who is connected to whom by TCP, and who to somebody else."""
    pairs, outside = [], []
    by_local = {_local(record): record for record in records if is_connection(record)}
    for record in by_local.values():
        other = by_local.get(_remote(record))
        if other is None or _remote(other) != _local(record):
            outside.append(record)
        elif record.objref < other.objref:
            pairs.append(InetConnection(one=record.objref, other=other.objref))
    return pairs, outside


def is_connection(record: InetSocket) -> bool:
    """Whether a socket is connected by TCP."""
    return record.kind == socket.SOCK_STREAM and bool(record.remote_port)


def _local(record: InetSocket) -> tuple[str, int, str, int]:
    return (plain_address(record.local_address), record.local_port,
            plain_address(record.remote_address), record.remote_port)


def _remote(record: InetSocket) -> tuple[str, int, str, int]:
    here, our_port, there, their_port = _local(record)
    return there, their_port, here, our_port


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
                received = [one.data for one in making.plan.of(InetMessage) if one.socket == objref]
                sending, receiving = sequences
                populate(record, sock, (sending, receiving - sum(map(len, received))), _AGREED, received)
        for _, sock in ends:
            tell(sock, tcp_repair.REPAIR, tcp_repair.OFF)  # and asks the other end how much room it has
        for record, sock in ends:
            socket_options.restart(sock, [one for one in record.options if not tcp_repair.is_early(one)])
            if record.shutdown:
                sock.shutdown(socket.SHUT_WR)
    except OSError as error:
        raise RestartError(f"a connection of TCP: {error.strerror}", errno=error.errno) from error
    finally:
        for _, sock in ends:
            sock.close()
