"""What waits in the receive queue of a socket: looked at without taking it; of unix(7), put back."""

from __future__ import annotations

import array
import errno
import fcntl
import mmap
import os
import select
import socket
import struct
import termios
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crd.engine.userspace.fds.kind import TryLaterError
from crd.engine.userspace.fds.socket_options import SO_PEEK_OFF
from crd.errors import Obstacle, RestartError, TargetUnsupported
from crd.image.objects import MESSAGE_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.image.objects import UnixMessage

_LOOK = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
_CREDENTIALS = struct.Struct("<iII")
_SCM_PIDFD = 4
_RIGHTS_MAX = 253
_ANCILLARY_BYTES = socket.CMSG_SPACE(4 * _RIGHTS_MAX) + socket.CMSG_SPACE(_CREDENTIALS.size) + 256
NOBODY = (0, 0xFFFF_FFFF, 0xFFFF_FFFF)


@dataclass(slots=True)
class Message:
    """A datagram, or a stretch of a stream.

    Attributes:
        data: its bytes.
        source: name of the sender, as ``recvmsg`` returns it.
        credentials: pid, uid, gid of the sender; NOBODY: none are in the queue.
        rights: descriptors of ours for those that it carries.
    """

    data: bytes
    source: str | bytes | tuple[str, int] | None
    credentials: tuple[int, int, int] = NOBODY
    rights: list[int] = field(default_factory=list)


def look(sock: socket.socket, name: str, *, receives: bool) -> list[Message]:
    """Return the messages that wait, and leave them there.

    An empty datagram that was looked at before is not seen again: the kernel counts it as passed over.

    Args:
        sock: a duplicate of the target's socket.
        name: to call it in an obstacle.
        receives: whether it may receive: at the end of a stream nothing comes, again and again.

    Raises:
        TargetUnsupported: a message is too large for an image.
        TryLaterError: an error waits with the messages.
    """
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    events = sum(found for _, found in poll.poll(0))
    if not events:
        return []
    if sock.type != socket.SOCK_STREAM and events & select.POLLERR:
        raise TryLaterError(Obstacle("fd.socket", name, "has an error to report, which a look would take away",
                                     "Try again when the program has seen it."))
    with _from_the_front(sock):
        return list(_stretches(sock) if sock.type == socket.SOCK_STREAM else _datagrams(sock, name, receives=receives))


@contextmanager
def _from_the_front(sock: socket.socket) -> Iterator[None]:
    before = sock.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF)
    sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    try:
        yield
    finally:
        sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, before)


def _datagrams(sock: socket.socket, name: str, *, receives: bool) -> Iterator[Message]:
    while True:
        try:
            data, ancillary, flags, source = sock.recvmsg(MESSAGE_BYTES_MAX, _ANCILLARY_BYTES, _LOOK)
        except BlockingIOError:
            return
        message = _with_ancillary(Message(data, source or None), ancillary)
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise TargetUnsupported(reasons=[Obstacle("fd.socket", name, "holds a message of more than 1 MiB",
                                                      "Try again when the program has read it.")])
        if not data and not receives:  # the end, which comes again and again
            return
        yield message


def _stretches(sock: socket.socket) -> Iterator[Message]:
    """Yield what is in a stream, never looking behind it: an error that waits there would be taken away."""
    at, length = 0, int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), "little")
    while at < length:
        data, ancillary, _, source = sock.recvmsg(min(length - at, MESSAGE_BYTES_MAX), _ANCILLARY_BYTES, _LOOK)
        message = _with_ancillary(Message(data, source or None), ancillary)
        if message.rights and (begin := _where_rights_begin(sock, at, len(data))):
            yield Message(data[:begin], message.source, message.credentials)
            message.data = data[begin:]
        yield message
        at += len(data)


def _with_ancillary(message: Message, ancillary: list[tuple[int, int, bytes]]) -> Message:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            message.rights += array.array("i", data[:len(data) // 4 * 4])
        elif (level, kind) == (socket.SOL_SOCKET, _SCM_PIDFD):  # of the sender: made anew for each reader
            os.close(int.from_bytes(data, "little"))
        elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            message.credentials = _CREDENTIALS.unpack(data)
    return message


def _where_rights_begin(sock: socket.socket, at: int, length: int) -> int:
    """Return after how many bytes of a stretch of a stream the buffer begins that carries the descriptors.

    One look goes from buffer to buffer up to one with descriptors.  A look whose last byte cannot be stored fails in
    the last buffer, and has stored all those before.
    """
    sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, at)
    nowhere = _nowhere()
    parts = [memoryview(bytearray(length - 1)), memoryview(nowhere)[:1]]
    begin = 0
    try:
        begin, ancillary, _, _ = sock.recvmsg_into(parts, _ANCILLARY_BYTES, _LOOK)
        for fd in _with_ancillary(Message(b"", None), ancillary).rights:
            os.close(fd)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
    finally:
        for part in parts:
            part.release()
        nowhere.close()
    sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, at + length)
    return begin


def _nowhere() -> mmap.mmap:
    """Return memory that nothing can be stored in, but that looks as if: behind the end of what it maps."""
    fd = os.memfd_create("nowhere")
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        memory = mmap.mmap(fd, mmap.PAGESIZE)
        os.ftruncate(fd, 0)
        return memory
    finally:
        os.close(fd)


def put_back(sender: socket.socket, message: UnixMessage, rights: list[int], pid: int,
             receiver: str | bytes | None) -> None:
    """Send a message again.

    Args:
        sender: which has room for it.
        message: the message.
        rights: descriptors of ours to send with it.
        pid: of the sender now; 0: it has none to name.
        receiver: where to, if the sender is not connected.

    Raises:
        RestartError: it does not fit.
    """
    ancillary: list[tuple[int, int, bytes]] = []
    if rights:
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", rights).tobytes()))
    if pid:
        ancillary.append((socket.SOL_SOCKET, socket.SCM_CREDENTIALS, _CREDENTIALS.pack(pid, message.uid, message.gid)))
    where = [] if receiver is None else [receiver]
    try:
        sent = sender.sendmsg([message.data], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, *where)
    except OSError as error:
        raise RestartError(f"a message that waits in a unix socket: {error.strerror}", errno=error.errno) from error
    if sent != len(message.data):
        raise RestartError("a message that waits in a unix socket does not fit")


def forget(messages: list[Message]) -> None:
    """Close the descriptors that came with messages."""
    for message in messages:
        for fd in message.rights:
            with suppress(OSError):
                os.close(fd)
