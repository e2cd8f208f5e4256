"""Connections of TCP whose other end is not in the image.

What is restarted may go on with such a connection only where the other end knows nothing of the interruption: the
target was killed by the checkpoint, and the connection has been held since (``network_hold``).  Any other one is over,
and the program is told so as if its peer had ended (ECONNRESET), after what it had received.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from crd.engine.api import Tcp
from crd.engine.userspace.fds import forged, network_hold, socket_options, tcp_repair, tcp_state
from crd.engine.userspace.fds.network_hold import Ends
from crd.engine.userspace.fds.tcp_repair import in_pieces, tell
from crd.errors import ResourceChanged, RestartError
from crd.image.objects import InetMessage, InetSending, InetSocket, OutsideConnection
from crd.target import inet_obstacles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crd.engine.userspace.fds.kind import Making
    from crd.engine.userspace.fds.tcp_state import State
    from crd.engine.userspace.plan import Plan
    from crd.image.codec import Record

SAVED = {tcp_repair.ESTABLISHED, tcp_repair.FIN_WAIT_1, tcp_repair.FIN_WAIT_2, tcp_repair.CLOSE_WAIT,
         tcp_repair.LAST_ACK, tcp_repair.CLOSING}
"""The states of a connection that can be saved."""

_AT_ONCE = struct.pack("<ii", 1, 0)
"""struct linger: closing sends RST."""
_MOMENT_SECONDS = 0.001
_RESET_MILLISECONDS = 10_000


def ends(record: InetSocket) -> Ends:
    """Return the ends of a connection."""
    return Ends(record.local_address, record.local_port, record.remote_address, record.remote_port)


def dump(objref: int, state: State) -> Iterator[Record]:
    """Yield the records of a connection, behind that of its socket."""
    yield OutsideConnection(socket=objref, **{name: getattr(state, name) for name in OutsideConnection.fields
                                              if name != "socket"})
    for data in in_pieces(state.receiving):
        yield InetMessage(socket=objref, address="", port=0, data=data)
    for data in in_pieces(state.sending):
        yield InetSending(socket=objref, data=data)


def check(plan: Plan, wish: Tcp) -> None:
    """Find out which connections have been held, and note in the shared records of a plan what becomes of them.

    Raises:
        ResourceChanged: all should go on, and one cannot.
    """
    found = {one.socket: ends(plan.objects[one.socket]) for one in plan.of(OutsideConnection)}
    held = network_hold.kept(found.values())
    plan.shared.held = {objref for objref, its in found.items() if its in held}
    lost = next((its for its in found.values() if its not in held), None)
    if wish == Tcp.ESTABLISHED and lost:
        raise ResourceChanged(
            f"the connection of TCP from {lost} has not been held: its other end may know that it is over", path="",
            hint="Only the first restart after a checkpoint that killed the target (--kill), within an hour, on the "
                 "same host and with CAP_NET_ADMIN, goes on with connections. --tcp close does without.")
    plan.shared.going_on = set() if wish == Tcp.CLOSE else plan.shared.held


def restart(making: Making) -> None:
    """Make all connections; those that go on speak when the tasks come to life, not before.

    Raises:
        RestartError: one cannot be made.
    """
    shared = making.plan.shared
    for connection in making.plan.of(OutsideConnection):
        record: InetSocket = making.plan.objects[connection.socket]
        received = [one.data for one in making.plan.of(InetMessage) if one.socket == connection.socket]
        try:
            with socket.socket(fileno=os.dup(making.ours[connection.socket])) as sock:
                if connection.socket in shared.going_on:
                    _go_on(making, connection, record, sock, received)
                    continue
                if connection.socket in shared.held:
                    _refuse(making, connection, record)
                _end(record, sock, received)
        except OSError as error:
            raise RestartError(f"the connection of TCP from {ends(record)}: {error.strerror}",
                               errno=error.errno) from error
        making.notes.append(f"the connection of TCP from {ends(record)} is over, as its program is told")


def _go_on(making: Making, connection: OutsideConnection, record: InetSocket, sock: socket.socket,
           received: Sequence[bytes]) -> None:
    """Bring a connection to where it was, as far as that goes before it may speak.

    Until the target was killed, its kernel may have sent more, by a timer (pacing; a probe for a lost tail, RFC 8985),
    as far as the other end had room.  So all of that counts as sent: what acknowledges more than was is thrown away.
    """
    written = b"".join(one.data for one in making.plan.of(InetSending) if one.socket == connection.socket)
    n_sent = max(len(written) - connection.unsent_bytes, min(len(written), connection.send_window))
    sent, unsent = written[:n_sent], written[n_sent:]
    _populate(connection, record, sock, received, sent, len(written), _downtime_ns(making))
    fd = making.ours[connection.socket]

    def begin() -> None:
        network_hold.let_go([ends(record)])
        with socket.socket(fileno=os.dup(fd)) as ours:
            tell(ours, tcp_repair.REPAIR, tcp_repair.OFF)  # and asks the other end how much room it has
            for data in in_pieces(unsent):
                ours.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            socket_options.restart(ours, [one for one in record.options if not tcp_repair.is_early(one)])
            if tcp_state.has_sent_end(connection.state):
                ours.shutdown(socket.SHUT_WR)

    making.broker.afterwards(begin)


def _populate(connection: OutsideConnection, record: InetSocket, sock: socket.socket, received: Sequence[bytes],
              sent: bytes, n_written: int, downtime_ns: int) -> None:
    """Tell a socket everything but what it has not sent; it stays in repair.

    Its timestamps go on by the clock: the old socket may have sent later ones than the image's until the target was
    killed, and the other end drops packets with earlier ones than it knows (PAWS, RFC 7323).
    """
    state = connection.state
    our_end = tcp_state.has_sent_end(state) or state == tcp_repair.FIN_WAIT_2
    their_end = state in {tcp_repair.CLOSE_WAIT, tcp_repair.LAST_ACK, tcp_repair.CLOSING}
    first = connection.send_sequence - our_end - n_written
    read = connection.receive_sequence - their_end - sum(map(len, received))
    tcp_repair.populate(record, sock, (first, read), _agreed(connection), received)
    if connection.stamped:
        tell(sock, tcp_repair.TIMESTAMP, stamp_after(connection.timestamp, downtime_ns).to_bytes(4, "little"))
    tcp_repair.fill(sock, tcp_repair.SEND_QUEUE, in_pieces(sent))
    with suppress(OSError):  # one that could not have been; the other end says how it is
        tell(sock, tcp_repair.REPAIR_WINDOW, tcp_repair.WINDOW.pack(
            connection.window_sequence, connection.send_window, connection.largest_window,
            connection.receive_window + their_end, (connection.receive_window_from - their_end) & 0xFFFF_FFFF))
    if their_end:
        forged.send(ends(record), connection.receive_sequence - 1, first, end=True)
    elif state == tcp_repair.FIN_WAIT_2:
        tell(sock, tcp_repair.REPAIR_QUEUE, tcp_repair.SEND_QUEUE)
        sock.shutdown(socket.SHUT_WR)
        tell(sock, tcp_repair.REPAIR_QUEUE, tcp_repair.NO_QUEUE)
        forged.send(ends(record), connection.receive_sequence, connection.send_sequence, end=False)


def stamp_after(timestamp: int, downtime_ns: int) -> int:
    """Return what TCP_TIMESTAMP is to be after some time, never less.

    Timestamps count milliseconds, or microseconds if the lowest bit is set (``do_tcp_setsockopt``, 6.7): a socket that
    is told the wrong one counts a thousand times too fast, and its next copy is far behind what the other end has seen.
    """
    in_microseconds = timestamp & 1
    passed = downtime_ns // (1_000 if in_microseconds else 1_000_000)
    return timestamp + passed + 2 & 0xFFFF_FFFE | in_microseconds


def _downtime_ns(making: Making) -> int:
    return max(0, time.time_ns() - making.plan.profile.taken_realtime_ns)


def _agreed(connection: OutsideConnection) -> list[tuple[int, int]]:
    agreed = [(tcp_repair.MAXIMUM_SEGMENT, connection.segment_bytes)]
    if connection.scaled:
        agreed.append((tcp_repair.WINDOW_SCALE, connection.send_scale | connection.receive_scale << 16))
    if connection.selective:
        agreed.append((tcp_repair.SACK_PERMITTED, 0))
    if connection.stamped:
        agreed.append((tcp_repair.TIMESTAMPS, 0))
    return agreed


def _refuse(making: Making, connection: OutsideConnection, record: InetSocket) -> None:
    """Have the other end of a held connection told that it is over, when the tasks come to life."""
    sock = socket.socket(record.family, record.kind)
    fd = making.broker.hold(sock.detach())
    with socket.socket(fileno=os.dup(fd)) as sock:
        _populate(connection, record, sock, [], b"", 0, _downtime_ns(making))

    def tell_them() -> None:
        network_hold.let_go([ends(record)])
        with socket.socket(fileno=os.dup(fd)) as ours:
            tell(ours, tcp_repair.REPAIR, tcp_repair.OFF_SILENTLY)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        making.broker.close(fd)

    making.broker.afterwards(tell_them)


def _end(record: InetSocket, sock: socket.socket, received: Sequence[bytes]) -> None:
    """Make a connection that is over: with somebody of ours, who sends what had been received and is gone."""
    with socket.socket(record.family, record.kind) as listener:
        _take_names(record, sock, listener)
        tcp_repair.make_room(sock)
        listener.listen(1)
        sock.connect(listener.getsockname())
        peer, _ = listener.accept()
        with peer:
            tcp_repair.make_room(peer)
            for data in received:
                peer.sendall(data)
            while inet_obstacles.unsent(peer):
                time.sleep(_MOMENT_SECONDS)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    poll = select.poll()
    poll.register(sock, select.POLLHUP)
    poll.poll(_RESET_MILLISECONDS)
    socket_options.restart(sock, [one for one in record.options if not tcp_repair.is_early(one)])


def _take_names(record: InetSocket, sock: socket.socket, listener: socket.socket) -> None:
    """Give a socket the name that it had, beside others at the same port, and the listener one that it can reach."""
    scope = (0, record.scope) if record.family == socket.AF_INET6 else ()
    try:
        listener.bind((record.local_address, 0, *scope))
        tell(sock, tcp_repair.REPAIR, tcp_repair.ON)
        sock.bind((record.local_address, record.local_port, *scope))
        tell(sock, tcp_repair.REPAIR, tcp_repair.OFF_SILENTLY)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        listener.bind(("127.0.0.1" if record.family == socket.AF_INET else "::1", 0))
