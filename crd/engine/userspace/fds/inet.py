"""Sockets of TCP and UDP: tcp(7), udp(7)."""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING

from crd.engine.userspace.clash import clash
from crd.engine.userspace.fds import (
    backlog,
    lingering,
    socket_filter,
    socket_options,
    socket_queue,
    tcp,
    tcp_outside,
    tcp_repair,
    tcp_state,
)
from crd.engine.userspace.fds.kind import Kind, Making, TryLaterError
from crd.engine.userspace.fds.multicast import Memberships
from crd.engine.userspace.fds.unix import domain, opened
from crd.errors import Obstacle, ResourceChanged, RestartUnsupported
from crd.image.objects import InetConnection, InetMessage, InetSocket
from crd.target import inet_obstacles, procfs
from crd.target.holders import link_holders
from crd.target.sock_diag import LISTENING, socket_inode
from crd.target.tree import Family
from crd.target.wording import process_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crd.engine.api import Files
    from crd.engine.userspace.clash import Clash
    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.fds.table import FileTable
    from crd.engine.userspace.plan import Plan
    from crd.image.codec import Record

_FAMILIES = {socket.AF_INET, socket.AF_INET6}
_SO_PROTOCOL = 38
_PROTOCOLS = {(socket.SOCK_STREAM, socket.IPPROTO_TCP), (socket.SOCK_DGRAM, socket.IPPROTO_UDP)}
_BACKLOG_AT = 28  # in struct tcp_info: of a listening socket tcpi_sacked is its backlog
_TRANSPARENT = {socket.AF_INET: (socket.IPPROTO_IP, 19), socket.AF_INET6: (socket.IPPROTO_IPV6, 75)}
_CAP_NET_BIND_SERVICE = 10


class InetSockets(Kind):
    """An INET_SOCKET each, an INET_CONNECTION for two that are connected, INET_MESSAGEs for what waits in them.

    One that is connected by TCP to another process has an OUTSIDE_CONNECTION, and INET_SENDINGs for what is on its way.
    """

    def recognises(self, one: Description) -> bool:
        """By its domain and protocol, which only a duplicate tells."""
        if socket_inode(one.link) is None or domain(one.borrowed) not in _FAMILIES:
            return False
        with opened(one) as sock:
            return (sock.type, sock.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL)) in _PROTOCOLS

    def dump(self, found: Sequence[Description], table: FileTable) -> Iterator[Record]:
        """Note names and options, and copy what waits.

        Raises:
            TryLaterError: something is on its way.
        """
        by_objref = {one.objref: one for one in found}
        for one in found:
            with opened(one) as sock:
                if sock.type == socket.SOCK_STREAM:
                    tcp.acknowledge(sock)
        records, states, memberships = {}, {}, Memberships()
        for one in found:
            with opened(one) as sock:
                records[one.objref], states[one.objref] = _dump(one, sock)
                table.late_records += socket_filter.dump(one, sock)
                if sock.type == socket.SOCK_DGRAM:
                    table.late_records += memberships.dump(one, sock)
        pairs, outside = tcp.paired(records.values())
        backlog.look(records.values(), outside, by_objref, table)
        yield from records.values()
        arriving = _arriving(pairs, by_objref)
        for record in records.values():
            with opened(by_objref[record.objref]) as sock:
                if record not in outside:
                    table.late_records += _waiting(by_objref[record.objref], sock, states[record.objref],
                                                   arriving.get(record.objref, b""))
        yield from pairs
        if outside:
            yield from _outside(outside, by_objref, table)

    def clashes(self, plan: Plan, files: Files) -> Iterator[Clash]:  # noqa: ARG002
        """Tell which ports another process has; they are bound for a moment."""
        for record in plan.of(InetSocket):
            if record.local_port and not tcp.is_connection(record):
                yield from clash(_try_port, record)

    def make(self, making: Making) -> None:
        """Make the sockets and give them their names; raises RestartError."""
        for record in making.wanted(InetSocket):
            fd = socket.socket(record.family, record.kind).detach()
            making.add(record.objref, fd)
            if tcp.is_connection(record):
                _check_port(record, making)
                continue
            with socket.socket(fileno=os.dup(fd)) as sock:
                socket_options.restart(sock, record.options)
                if record.local_port:
                    _bind(sock, record, making)
                if record.listening:
                    sock.listen(record.backlog)

    def connect(self, making: Making) -> None:
        """Connect TCP; put back datagrams, and connect UDP then: it takes them from its peer only."""
        records = making.wanted(InetSocket)
        tcp.restart(making)
        tcp_outside.restart(making)
        for message in making.plan.of(InetMessage):
            if message.socket in making.ours and not tcp.is_connection(making.plan.objects[message.socket]):
                _put_back(message, making)
        for record in records:
            with socket.socket(fileno=os.dup(making.ours[record.objref])) as sock:
                if record.remote_port and not tcp.is_connection(record):
                    try:
                        sock.connect((record.remote_address, record.remote_port))
                    except OSError as error:
                        making.notes.append(f"a UDP socket sends nowhere any more: {record.remote_address}: "
                                            f"{error.strerror}")
            making.set_flags(record.objref, record.flags)


def _arriving(pairs: Sequence[InetConnection], by_objref: dict[int, Description]) -> dict[int, bytes]:
    """Return what is on its way within the target; raises as ``tcp.arriving``."""
    with ExitStack() as stack:
        return tcp.arriving(pairs, {end: stack.enter_context(opened(by_objref[end]))
                                    for pair in pairs for end in (pair.one, pair.other)})


def _waiting(one: Description, sock: socket.socket, state: int, arriving: bytes) -> Iterator[InetMessage]:
    """Yield what waits in a socket, but in a connection to another process.

    Args:
        one: the socket.
        sock: a duplicate.
        state: of the connection as its record has it: by now an end that was just being closed may be closed.
        arriving: what is on its way to it.

    Raises:
        TryLaterError: something is on its way.
    """
    if sock.type == socket.SOCK_DGRAM:
        for message in socket_queue.look(sock, one.name, receives=True):
            source: tuple[str, int] = message.source or ("", 0)  # type: ignore[assignment]
            yield InetMessage(socket=one.objref, address=_bare(source[0]), port=source[1], data=message.data)
    elif state in tcp.SETTLED:
        yield from tcp.waiting(one, sock, arriving)
    elif state not in {LISTENING, tcp_repair.CLOSE}:
        raise _unsettled(one)


def _unsettled(one: Description) -> TryLaterError:
    return TryLaterError(Obstacle("fd.tcp", one.name, "is a connection that is just being made or closed",
                                  "Try again when it is."))


def _outside(records: Sequence[InetSocket], by_objref: dict[int, Description], table: FileTable) -> Iterator[Record]:
    """Yield the connections to other processes, which are held from here on if the target is to be killed.

    Raises:
        TryLaterError: one is being made or closed, or changes all the time.
    """
    with ExitStack() as stack:
        socks = {record.objref: stack.enter_context(opened(by_objref[record.objref])) for record in records}
        if table.leaving:
            table.leaving.take({tcp_outside.ends(record): socks[record.objref] for record in records})
        for record, state in zip(records, tcp_state.look([*socks.values()]), strict=True):
            if state is None or state.state not in tcp_outside.SAVED:
                raise _unsettled(by_objref[record.objref])
            connection, *queues = tcp_outside.dump(record.objref, state)
            yield connection
            table.late_records += queues


def _peer(sock: socket.socket) -> tuple[str, int]:
    """Return where a socket is connected to, or ("", 0)."""
    try:
        name = sock.getpeername()
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        return "", 0
    return name[0], name[1]


def _bare(address: str) -> str:
    """Return an address without the interface that is named behind it."""
    return address.partition("%")[0]


def _dump(one: Description, sock: socket.socket) -> tuple[InetSocket, int]:
    """Return the record of a socket, and the state that it tells of."""
    name = sock.getsockname()
    state, backlog = tcp_repair.CLOSE, 0
    if sock.type == socket.SOCK_STREAM:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, tcp_state.INFO_BYTES)
        state = info[0]
        backlog = struct.unpack_from("<I", info, _BACKLOG_AT)[0] if state == LISTENING else 0
    elif inet_obstacles.unsent(sock):
        raise TryLaterError(Obstacle("fd.udp", one.name, "has a datagram that is not complete yet",
                                     "Try again when it has been sent."))
    remote = _peer(sock)
    options = [option for option in socket_options.dump(sock)
               if sock.type == socket.SOCK_DGRAM or not remote[1]
               or (option.level, option.name) not in tcp.OF_THE_CONNECTION]
    record = InetSocket(
        objref=one.objref, flags=one.flags, owner=one.owner, family=sock.family, kind=sock.type,
        listening=state == LISTENING, shutdown=state == tcp_repair.FIN_WAIT_2, backlog=backlog,
        local_address=_bare(name[0]), local_port=name[1], scope=name[3] if sock.family == socket.AF_INET6 else 0,
        remote_address=_bare(remote[0]), remote_port=remote[1], options=options)
    return record, state


def _check_port(record: InetSocket, making: Making) -> None:
    """Refuse a port that the task could not have got by itself; raises RestartUnsupported."""
    if record.local_port < procfs.number("sys", "net/ipv4/ip_unprivileged_port_start"):
        leader = making.plan.shared.opened[record.objref].leader
        if leader.uids[1] and not leader.capabilities.permitted >> _CAP_NET_BIND_SERVICE & 1:
            raise RestartUnsupported(f"port {record.local_port} is not for the user of the task (uid {leader.uids[1]})",
                                     hint="Lower net.ipv4.ip_unprivileged_port_start.")


def _bind(sock: socket.socket, record: InetSocket, making: Making) -> None:
    """Give a socket its name.

    Raises:
        RestartUnsupported: the port is for privileged programs, and the task is none.
        ResourceChanged: another process has it, or the address is not ours any more.
    """
    _check_port(record, making)
    reuse = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    try:
        if record.kind == socket.SOCK_STREAM:  # beside connections that linger
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(_name(record))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not lingering.remove(record.local_port):
                raise
            sock.bind(_name(record))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
    except OSError as error:
        raise _not_had(record, error, _by_whom(record)) from error


def _try_port(record: InetSocket) -> None:
    """Bind a socket as that of the image was, and close it.

    Raises:
        ResourceChanged: another process has the port, or the address is not ours any more.
    """
    with socket.socket(record.family, record.kind) as sock:
        socket_options.restart(sock, record.options)
        if record.kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(_name(record))
        except OSError as error:
            by_whom = _by_whom(record)
            if error.errno != errno.EADDRINUSE or by_whom:  # else connections linger, which a restart ends
                raise _not_had(record, error, by_whom) from error


def _name(record: InetSocket) -> tuple[object, ...]:
    where = record.local_address, record.local_port
    return where if record.family == socket.AF_INET else (*where, 0, record.scope)


def _not_had(record: InetSocket, error: OSError, by_whom: str) -> ResourceChanged:
    return ResourceChanged(f"{record.local_address} port {record.local_port}: {error.strerror}{by_whom}", path="",
                           hint="End the process that has it, or bring the address back.")


def _by_whom(record: InetSocket) -> str:
    inodes = [inode for inode, port in inet_obstacles.bound_ports(record.kind) if port == record.local_port]
    holders = link_holders(Family(os.getpid(), descendants=False), {f"socket:[{inode}]" for inode in inodes})
    who = sorted({pid for pids in holders.values() for pid in pids})
    return f", by {process_names(who)}" if who else ""


def _put_back(message: InetMessage, making: Making) -> None:
    """Send a datagram to a socket again, from where it came; the network may lose any, so this is no error."""
    record: InetSocket = making.plan.objects[message.socket]
    anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
    where = anywhere.get(record.local_address, record.local_address), record.local_port
    try:
        with _sender(message, record, making) as sender:
            sender.sendto(message.data, socket.MSG_DONTWAIT, where)
    except OSError as error:
        making.notes.append(f"a datagram of {len(message.data)} bytes that waited at port {where[1]} is lost: "
                            f"{error.strerror}")


def _sender(message: InetMessage, record: InetSocket, making: Making) -> socket.socket:
    """Return a socket that has the name of the sender: one of the image, or one that only looks so."""
    for other in making.wanted(InetSocket):
        if (other.kind, other.local_address, other.local_port) == (record.kind, message.address, message.port):
            return socket.socket(fileno=os.dup(making.ours[other.objref]))
    sender = socket.socket(record.family, record.kind)
    try:
        sender.setsockopt(*_TRANSPARENT[socket.AddressFamily(record.family)], 1)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sender.bind((message.address, message.port))
    except BaseException:
        sender.close()
        raise
    return sender
