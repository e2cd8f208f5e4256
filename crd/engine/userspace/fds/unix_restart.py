"""Unix sockets, made again: first the sockets and their connections, then what waited in them."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from crd.engine.userspace.clash import clash
from crd.engine.userspace.fds import journal, socket_options, socket_queue
from crd.engine.userspace.fds.unix_calls import accept_from, connect, listen, socketpair
from crd.errors import ResourceChanged, RestartError
from crd.image.journal import JournalConnection
from crd.image.objects import (
    UNIX_CONNECTED,
    UNIX_HUNG_UP,
    UNIX_LISTENING,
    UNIX_RESET,
    UnixConnection,
    UnixMessage,
    UnixSocket,
)
from crd.target.sock_diag import SocketDiagnosis

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.engine.userspace.clash import Clash
    from crd.engine.userspace.fds.kind import Making
    from crd.engine.userspace.plan import Plan

_CLOSED = {UNIX_HUNG_UP, UNIX_RESET}
_SNDBUFFORCE = 32
_SIOCUNIXFILE = 0x89E0
_ROOM_BYTES = 16 << 20


def clashes(plan: Plan) -> Iterator[Clash]:
    """Tell which names of sockets cannot be had: a directory is missing, or another socket or file has the name."""
    for record in plan.of(UnixSocket):
        if record.name and not _inherits_its_name(plan, record):
            if _is_bound(record):
                shown = record.path or os.fsdecode(record.name.replace(b"\0", b"@"))
                yield ResourceChanged(f"the socket {shown} is in use by another process", path=record.path,
                                      hint="End that process first.")
            elif record.path:
                yield from clash(_check_path, record)
    yield from journal.clashes(plan)


def _is_bound(record: UnixSocket) -> bool:
    """Whether a socket that is alive has the name."""
    with SocketDiagnosis() as diagnosis:
        files, names = diagnosis.bound()
    try:
        found = os.lstat(record.path)
    except OSError:
        return record.name in names
    return (found.st_dev, found.st_ino & 0xFFFF_FFFF) in files


def _inherits_its_name(plan: Plan, record: UnixSocket) -> bool:
    """Whether it was accepted from a listener of the image, whose name it has."""
    return any(one.accepted == record.objref and one.listener for one in plan.of(UnixConnection))


def _check_path(record: UnixSocket) -> None:
    path, bound = Path(record.path), _bound_path(record)
    for parent in (path.parent, bound.parent):
        if not parent.is_dir():
            raise ResourceChanged(f"there is no directory {parent} for the socket {path}", path=record.path,
                                  hint="Make the directory again.")
    if path.exists() and (record.deleted or not path.is_socket()):
        raise ResourceChanged(f"{path} is in the way of a socket", path=record.path, hint="Move it away.")
    if bound.exists() and not (path.exists() and bound.samefile(path)):
        raise ResourceChanged(f"{bound} is in the way of the socket {path}, which was bound there and renamed",
                              path=str(bound), hint="Move it away.")


def _beginning(record: UnixSocket) -> Path:
    """Return the directory from where a relative name of a socket leads to its file."""
    given, directory = Path(os.fsdecode(record.name)).parent, Path(record.path).parent
    return Path(str(directory).removesuffix(str(given))) if given.name else directory


def _bound_path(record: UnixSocket) -> Path:
    """Return where the file of a socket is made; the program may have renamed it since."""
    return Path(_beginning(record), os.fsdecode(record.name))


def make(making: Making) -> None:
    """Make the sockets, and the connections between them.

    Raises:
        ResourceChanged: a name cannot be had.
        RestartError: the kernel refuses something.
    """
    sockets = {record.objref: record for record in making.wanted(UnixSocket)}
    connections = [one for one in making.plan.of(UnixConnection) if one.client in sockets or one.accepted in sockets]
    paired = {end for one in connections for end in (one.client, one.accepted)}
    for record in sockets.values():
        if record.objref not in paired and record.state not in _CLOSED:
            _make_single(record, making)
    for record in sockets.values():
        if record.state in _CLOSED:
            making.act_as(record.peer_pid)
            ends = socketpair(making, record.kind, (record.peer_uid, record.peer_gid))
            making.add(record.objref, ends[0])
            making.peers[record.objref] = making.broker.hold(ends[1])
    for one in connections:
        _connect(one, making)
    for begun in making.plan.of(JournalConnection):
        if begun.socket in sockets:
            journal.make(sockets[begun.socket], begun, making)


def _make_single(record: UnixSocket, making: Making) -> None:
    fd = socket.socket(socket.AF_UNIX, record.kind).detach()
    making.add(record.objref, fd)
    if record.name:
        _bind(fd, record, making)
    if record.state == UNIX_LISTENING:
        making.act_as(record.peer_pid)
        listen(making, fd, record.backlog, (record.peer_uid, record.peer_gid))


def _bind(fd: int, record: UnixSocket, making: Making) -> None:
    """Give a socket its name as it was said, from where a relative one began; a file that is left over goes."""
    making.act_for(record.objref)
    name = record.name if record.name[0] == 0 else os.fsdecode(record.name)
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with making.broker.as_the_task(), socket.socket(fileno=os.dup(fd)) as sock:
            if record.path:
                _remove_left_over(record)
                os.chdir(_beginning(record))
            sock.bind(name)
            if record.path:
                _dress(record, making)
    except OSError as error:
        raise ResourceChanged(f"the name of socket {record.path or name!r}: {error.strerror}", path=record.path,
                              hint="End the process that has it, or make its directory again.") from error
    finally:
        os.fchdir(here)
        os.close(here)


def _remove_left_over(record: UnixSocket) -> None:
    """Remove the file of a socket that nobody has bound (``check`` has looked); never anything else."""
    path = Path(record.path)
    if path.is_socket() and not _is_bound(record):
        path.unlink()


def _dress(record: UnixSocket, making: Making) -> None:
    """Give the file its place and mode, and take it away again if the restart fails, or at once if it was deleted."""
    path, bound = Path(record.path), _bound_path(record)
    found = bound.lstat()

    def undo() -> None:
        for place in (bound, path):
            with suppress(FileNotFoundError):
                now = place.lstat()
                if (now.st_dev, now.st_ino) == (found.st_dev, found.st_ino):
                    place.unlink()

    making.broker.undo(undo)
    bound.rename(path)
    if record.deleted:
        path.unlink()
    else:
        path.chmod(record.mode)


def _connect(one: UnixConnection, making: Making) -> None:
    """Connect two sockets of the image, as somebody that each sees as its peer."""
    client, accepted = (making.plan.objects[objref] for objref in (one.client, one.accepted))
    who = accepted.peer_uid, accepted.peer_gid
    making.act_as(accepted.peer_pid)
    if client.kind == socket.SOCK_DGRAM or not accepted.name:
        ends = socketpair(making, client.kind, who)
        for record, fd in zip((client, accepted), ends, strict=True):
            if record.name:
                _bind(fd, record, making)
    else:
        listener = making.ours[one.listener] if one.listener else _temporary_listener(accepted, making)
        fd = socket.socket(socket.AF_UNIX, client.kind).detach()
        if client.name:
            _bind(fd, client, making)
        connect(making, fd, listener, who)
        ends = fd, accept_from(listener, making)
        if not one.listener:
            os.close(listener)
    for objref, fd, other in ((one.client, *ends), (one.accepted, *reversed(ends))):
        making.add(objref, fd)
        making.peers[objref] = other


def _temporary_listener(record: UnixSocket, making: Making) -> int:
    """Return a listener with the name of a socket that was accepted from one that is no more."""
    fd = socket.socket(socket.AF_UNIX, record.kind).detach()
    _bind(fd, record, making)
    listen(making, fd, 1, (record.peer_uid, record.peer_gid))
    return fd


def fill(making: Making) -> None:
    """Put back the messages; then set options, shut down, and close the ends that were closed.

    Raises:
        RestartError: a message does not fit, or the kernel refuses an option.
    """
    records = making.wanted(UnixSocket)
    by_name = {record.name: making.ours[record.objref] for record in records if record.name}
    for message in making.plan.of(UnixMessage):
        if message.socket in making.ours:
            _put_back(message, by_name, making)
    for record in records:
        if record.target and record.state != UNIX_CONNECTED:
            _connect_datagrams(record, by_name, making)
    for record in records:
        _finish(record, making)


def _put_back(message: UnixMessage, by_name: dict[bytes, int], making: Making) -> None:
    """Send a message through the other end, or through whoever has the name of the sender."""
    rights = [making.ours[objref] for objref in message.rights]
    sender_fd, receiver = making.peers.get(message.socket), None
    if sender_fd is None:
        sender_fd, receiver = by_name.get(message.source), _address(message.socket, making)
    fd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach() if sender_fd is None else os.dup(sender_fd)
    with socket.socket(fileno=fd) as sender:
        sender.setsockopt(socket.SOL_SOCKET, _SNDBUFFORCE, _ROOM_BYTES)
        socket_queue.put_back(sender, message, rights, _sender_pid(message, making), receiver)


def _sender_pid(message: UnixMessage, making: Making) -> int:
    """Return the number of who sent it, if the message tells; of one that is no more, that of the task."""
    if message.pid in making.vessels:
        return making.vessels[message.pid].pid
    gone = message.pid and not Path(f"/proc/{message.pid}").exists()
    return making.vessels[making.plan.pid].pid if gone else message.pid


def _address(objref: int, making: Making) -> str | bytes:
    record: UnixSocket = making.plan.objects[objref]
    return f"/proc/self/fd/{_file_of(making.ours[objref], making)}" if record.path else record.name


def _file_of(fd: int, making: Making) -> int:
    """Return our descriptor of the file that a socket is bound to: it can be reached wherever and whatever it is."""
    return making.broker.hold(fcntl.ioctl(fd, _SIOCUNIXFILE))


def _connect_datagrams(record: UnixSocket, by_name: dict[bytes, int], making: Making) -> None:
    """Say again where datagrams go; if nobody is there, the program is told so when it sends."""
    making.act_for(record.objref)
    name = record.target if record.target[0] == 0 else os.fsdecode(record.target)
    target = by_name.get(record.target)
    if target is not None and isinstance(name, str):
        name = f"/proc/self/fd/{_file_of(target, making)}"
    with making.broker.as_the_task(), socket.socket(fileno=os.dup(making.ours[record.objref])) as sock:
        try:
            sock.connect(name)
        except OSError as error:
            making.notes.append(f"a socket sends nowhere any more: connecting to {name!r}: {error.strerror}")


def _finish(record: UnixSocket, making: Making) -> None:
    fd = making.ours[record.objref]
    with socket.socket(fileno=os.dup(fd)) as sock:
        socket_options.restart(sock, record.options)
        if record.state in _CLOSED:
            if record.state == UNIX_RESET:
                sock.send(b"\0", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)  # unread, it makes the end a reset
            os.close(making.broker.release(making.peers[record.objref]))
        elif record.shutdown:
            try:
                sock.shutdown(record.shutdown - 1)
            except OSError as error:
                if error.errno != errno.ENOTCONN:
                    raise RestartError(f"shutting down a socket: {error.strerror}", errno=error.errno) from error
    making.set_flags(record.objref, record.flags)

