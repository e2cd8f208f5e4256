"""What waits in a POSIX message queue: the kernel shows it only to who takes it, so it is taken and put back.

That is done by a process of its own, other than the one that keeps the target stopped: if that one dies, this one goes
on, and if this one dies, that one has been told what it took.
"""

from __future__ import annotations

import errno
import os
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from crd.errors import EngineError, NativeError
from crd.native.syscall import NR, syscall

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADER = struct.Struct("<II")
_ATTRIBUTES = struct.Struct("<4q32x")  # struct mq_attr: flags, room for messages, for bytes, messages there are
_ALL_TAKEN = _HEADER.pack(0xFFFF_FFFF, 0)

Message = tuple[int, bytes]
"""Priority and data."""


def attributes(fd: int) -> tuple[int, int, int]:
    """Return how many messages a queue has room for, of how many bytes, and how many wait; raises NativeError: none."""
    found = bytearray(_ATTRIBUTES.size)
    syscall(NR.MQ_GETSETATTR, fd, 0, found)
    _, messages_max, message_bytes, waiting = _ATTRIBUTES.unpack(found)
    return messages_max, message_bytes, waiting


def is_queue(fd: int) -> bool:
    """Whether a descriptor is one of a message queue."""
    try:
        attributes(fd)
    except NativeError:  # EBADF
        return False
    return True


def create(name: str, flags: int, mode: int, messages_max: int, message_bytes: int) -> int:
    """Open a queue, or make it; raises NativeError."""
    wanted = _ATTRIBUTES.pack(0, messages_max, message_bytes, 0)
    return syscall(NR.MQ_OPEN, os.fsencode(name.removeprefix("/")) + b"\0", flags | os.O_CLOEXEC, mode, wanted)


def unlink(name: str) -> None:
    """Take away the name of a queue; raises NativeError."""
    syscall(NR.MQ_UNLINK, os.fsencode(name.removeprefix("/")) + b"\0")


def put(fd: int, message: Message) -> None:
    """Send a message; raises NativeError, EAGAIN if there is no room and the descriptor does not wait."""
    priority, data = message
    syscall(NR.MQ_TIMEDSEND, fd, data, len(data), priority, 0)


def look(borrowed: int) -> list[Message]:
    """Return what waits in a queue whose users are all stopped, in the order in which it is received.

    Raises:
        EngineError: it cannot be looked at; all is in the queue.
    """
    fd = os.open(f"/proc/self/fd/{borrowed}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        answer, told = os.pipe()
        child = os.fork()
        if not child:
            _take_and_put_back(fd, told)
        os.close(told)
        with os.fdopen(answer, "rb") as pipe:
            content = pipe.read()
        _, status = os.waitpid(child, 0)
        taken, all_taken = _understood(content)
        if status:
            _repair(fd, taken, all_taken=all_taken)
            raise EngineError("a message queue cannot be looked at: the process that did it has ended")
        return taken
    finally:
        os.close(fd)


def _take_and_put_back(fd: int, told: int) -> None:
    """Be that process."""
    code = 1
    try:
        taken = []
        for message in _take(fd):
            taken.append(message)
            _tell(told, _HEADER.pack(message[0], len(message[1])) + message[1])
        _tell(told, _ALL_TAKEN)
        for message in taken:
            put(fd, message)
        code = 0
    finally:
        os._exit(code)


def _tell(told: int, data: bytes) -> None:
    with suppress(BrokenPipeError):  # nobody listens any more: all the more it must be put back
        while data:
            data = data[os.write(told, data):]


def _take(fd: int) -> Iterator[Message]:
    """Yield all messages, one after the other as they are taken."""
    room, priority = bytearray(attributes(fd)[1]), bytearray(4)
    while True:
        try:
            length = syscall(NR.MQ_TIMEDRECEIVE, fd, room, len(room), priority, 0)
        except NativeError as error:
            if error.errno == errno.EAGAIN:
                return
            raise
        yield int.from_bytes(priority, "little"), bytes(room[:length])


def _understood(content: bytes) -> tuple[list[Message], bool]:
    taken: list[Message] = []
    at = 0
    while at + _HEADER.size <= len(content):
        priority, length = _HEADER.unpack_from(content, at)
        if content[at:at + _HEADER.size] == _ALL_TAKEN:
            return taken, True
        at += _HEADER.size
        if at + length <= len(content):
            taken.append((priority, content[at:at + length]))
        at += length
    return taken, False


def _repair(fd: int, taken: list[Message], *, all_taken: bool) -> None:
    """Put into the queue what was in it: what is left of that, or has been put back, comes behind or is there twice."""
    left = list(_take(fd))
    for message in taken if all_taken else [*taken, *left]:
        put(fd, message)
