"""Unix sockets: unix(7)."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import stat
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crd.engine.userspace.fds import backlog, journal, socket_filter, socket_options, socket_queue, unix_restart
from crd.engine.userspace.fds.description import Description
from crd.engine.userspace.fds.kind import Kind, Making
from crd.errors import Obstacle, TargetUnsupported
from crd.image.objects import (
    UNIX_CONNECTED,
    UNIX_HUNG_UP,
    UNIX_IDLE,
    UNIX_LISTENING,
    UNIX_RESET,
    UnixConnection,
    UnixMessage,
    UnixSocket,
)
from crd.native.syscall import kcmp
from crd.target.journal import namespace
from crd.target.paths import DELETED
from crd.target.sock_diag import ESTABLISHED, LISTENING, SocketDiagnosis, UnixSocketInfo, socket_inode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crd.engine.api import Files
    from crd.engine.userspace.clash import Clash
    from crd.engine.userspace.fds.table import FileTable
    from crd.engine.userspace.plan import Plan
    from crd.image.codec import Record

_SO_DOMAIN = 39
_SIOCUNIXFILE = 0x89E0
_UCRED = struct.Struct("<iII")
_KCMP_FILE = 0
_CLOSED_BOTH_WAYS = 3


class UnixSockets(Kind):
    """A UNIX_SOCKET each, a UNIX_CONNECTION for two that are connected, UNIX_MESSAGEs for what waits in them."""

    def recognises(self, one: Description) -> bool:
        """By its domain, which only a duplicate tells."""
        return socket_inode(one.link) is not None and domain(one.borrowed) == socket.AF_UNIX

    def discover(self, found: Sequence[Description], table: FileTable) -> None:
        """Look into the queues; what is in flight there belongs to the table, too."""
        with SocketDiagnosis() as diagnosis:
            for one in found:
                info = diagnosis.unix(one.stat.st_ino)
                if info is None:
                    raise _unsupported(one, "is a socket of another network namespace")
                table.unix[one.objref] = info
                if info.state != LISTENING:
                    with opened(one) as sock:
                        messages = socket_queue.look(sock, one.name, receives=not info.shutdown & 1)
                    table.queues[one.objref] = messages
                    for message in messages:
                        message.rights = [_in_flight(table, fd) for fd in message.rights]

    def dump(self, found: Sequence[Description], table: FileTable) -> Iterator[Record]:
        """Note the sockets; then who is connected to whom; then what waits, which may be any description."""
        inodes = {one.stat.st_ino: one for one in found}
        records = {one.objref: _dump(one, table.unix[one.objref], inodes, table) for one in found}
        yield from records.values()
        for one in found:
            peer = inodes.get(table.unix[one.objref].peer)
            if peer and peer.objref > one.objref and records[one.objref].state == UNIX_CONNECTED:
                yield _connection(records[one.objref], records[peer.objref], records)
            elif (space := _journal(one, table.unix[one.objref], inodes)) is not None:
                yield journal.connection(one, space, table.unix[one.objref].peer)
        for one in found:
            table.late_records += [_message(one, message) for message in table.queues.get(one.objref, [])]

    def clashes(self, plan: Plan, files: Files) -> Iterator[Clash]:  # noqa: ARG002
        """Tell which names cannot be had."""
        yield from unix_restart.clashes(plan)

    def make(self, making: Making) -> None:
        """Make the sockets and connect them."""
        unix_restart.make(making)

    def connect(self, making: Making) -> None:
        """Put back what waited; then set options and shut down what was."""
        unix_restart.fill(making)


def domain(fd: int) -> int:
    """Return the address family of a socket."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_DOMAIN)


@contextmanager
def opened(one: Description) -> Iterator[socket.socket]:
    """Return a socket object of our duplicate."""
    sock = socket.socket(fileno=one.borrowed)
    try:
        yield sock
    finally:
        sock.detach()


def _in_flight(table: FileTable, fd: int) -> int:
    """Take over a descriptor that came with a message; return the objref of its description, maybe one of the task."""
    one = Description.lent(fd)
    for other in table.descriptions.values():
        if (other.stat.st_dev, other.stat.st_ino) == (one.stat.st_dev, one.stat.st_ino) and (
                kcmp(other.pid, one.pid, _KCMP_FILE, other.fd, fd) == 0):
            one.give_back()
            return other.objref
    if one.info.locks:
        raise _unsupported(one, "is in flight in a socket, and holds a lock")
    one.objref = table.objects.new()
    table.descriptions[one.objref] = one
    return one.objref


def _unsupported(one: Description, reason: str) -> TargetUnsupported:
    return TargetUnsupported(reasons=[Obstacle("fd.unix", one.name, reason, "Close it before the checkpoint.")])


def _dump(one: Description, info: UnixSocketInfo, inodes: dict[int, Description], table: FileTable) -> UnixSocket:
    with opened(one) as sock:
        name, target = _raw(sock.getsockname()), b""
        state = _state(one, info, inodes, table)
        if info.kind == socket.SOCK_DGRAM and info.peer:
            target = _raw(sock.getpeername())
            if not target and state != UNIX_CONNECTED:
                raise _unsupported(one, "sends to a socket without a name, which is another process's")
        table.late_records += socket_filter.dump(one, sock)
        path, file = _bound_file(one, sock) if name and name[0] else ("", None)
        pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return UnixSocket(
            objref=one.objref, flags=one.flags, owner=one.owner, kind=info.kind, state=state, name=name,
            path=path.removesuffix(DELETED) if file and not file.st_nlink else path,
            device=file.st_dev if file else 0, inode=file.st_ino if file else 0,
            mode=stat.S_IMODE(file.st_mode) if file else 0, deleted=bool(file and not file.st_nlink), target=target,
            backlog=info.backlog, shutdown=info.shutdown, peer_pid=max(0, pid), peer_uid=uid, peer_gid=gid,
            options=socket_options.dump(sock))


def _state(one: Description, info: UnixSocketInfo, inodes: dict[int, Description], table: FileTable) -> int:
    """Return UNIX_*.

    Raises:
        TryLaterError: a connection of the task itself waits to be accepted.
        TargetUnsupported: the other end is another process's.
    """
    if info.state == LISTENING:
        backlog.tell(one, len({*info.waiting} - {0, *inodes}), table)
        return UNIX_LISTENING
    if info.kind == socket.SOCK_DGRAM:
        mutual = info.peer in inodes and table.unix[inodes[info.peer].objref].peer == one.stat.st_ino
        return UNIX_CONNECTED if mutual and not all(map(_name, (one, inodes[info.peer]))) else UNIX_IDLE
    if info.state != ESTABLISHED:
        return UNIX_IDLE
    if info.peer:
        if _journal(one, info, inodes) is not None:
            return UNIX_IDLE
        if info.peer not in inodes:
            raise _unsupported(one, "is connected to another process")
        return UNIX_CONNECTED
    if info.shutdown != _CLOSED_BOTH_WAYS:
        raise backlog.own(one, "fd.unix")
    poll = select.poll()
    poll.register(one.borrowed, 0)
    return UNIX_RESET if any(events & select.POLLERR for _, events in poll.poll(0)) else UNIX_HUNG_UP


def _journal(one: Description, info: UnixSocketInfo, inodes: dict[int, Description]) -> str | None:
    """Return the namespace of the journal that a stream leads to; None: it leads to none."""
    if not info.peer or info.peer in inodes or info.kind != socket.SOCK_STREAM:
        return None
    with opened(one) as sock:
        return namespace(_raw(sock.getpeername()))


def _name(one: Description) -> bytes:
    with opened(one) as sock:
        return _raw(sock.getsockname())


def _raw(name: str | bytes | None) -> bytes:
    """Return a name as sun_path has it: abstract ones begin with a NUL."""
    return os.fsencode(name) if isinstance(name, str) else name or b""


def _bound_file(one: Description, sock: socket.socket) -> tuple[str, os.stat_result]:
    try:
        fd = fcntl.ioctl(sock, _SIOCUNIXFILE)
    except PermissionError as error:
        raise TargetUnsupported(reasons=[Obstacle("fd.unix", one.name, "has a name whose file only root may ask for",
                                                  "Run crd as root.")]) from error
    try:
        return os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd)
    finally:
        os.close(fd)


def _connection(one: UnixSocket, other: UnixSocket, records: dict[int, UnixSocket]) -> UnixConnection:
    """Note who connected to whom: the one that was accepted has the name of a listener, if there still is one."""
    listeners = {record.name: record.objref for record in records.values() if record.state == UNIX_LISTENING}
    first_is_accepted = one.name in listeners or (bool(one.name) and other.name not in listeners)
    accepted, client = (one, other) if first_is_accepted else (other, one)
    return UnixConnection(client=client.objref, accepted=accepted.objref, listener=listeners.get(accepted.name, 0))


def _message(one: Description, message: socket_queue.Message) -> UnixMessage:
    pid, uid, gid = message.credentials
    return UnixMessage(socket=one.objref, source=_raw(message.source),  # type: ignore[arg-type]
                       pid=pid, uid=uid, gid=gid,
                       rights=message.rights, data=message.data)
