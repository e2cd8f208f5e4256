"""All there is to a connection of TCP: numbers, windows, what waits on either side (TCP_REPAIR of linux/tcp.h).

To tell it, a socket must be put into repair for some microseconds, in which its program could send nothing.  So that
is done by a process of its own, other than the one that keeps the target stopped: if it dies, that one puts the sockets
right before the target runs, and if that one dies, it goes on and puts them right at once.
"""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from crd.engine.userspace.fds.socket_options import SO_PEEK_OFF
from crd.engine.userspace.fds.tcp_repair import (
    CLOSING,
    FIN_WAIT_1,
    LAST_ACK,
    OFF_SILENTLY,
    ON,
    QUEUE_SEQUENCE,
    RECEIVE_QUEUE,
    REPAIR,
    REPAIR_QUEUE,
    REPAIR_WINDOW,
    SEND_QUEUE,
    TIMESTAMP,
    WINDOW,
    tell,
)
from crd.errors import EngineError
from crd.target import inet_obstacles

if TYPE_CHECKING:
    from collections.abc import Sequence

INFO_BYTES = 104
"""Of struct tcp_info: all that crd looks at."""

_OPTIONS_AT, _SCALES_AT = 5, 6
_TIMESTAMPS, _SACK, _WINDOW_SCALE, _MICROSECONDS = 1, 2, 4, 64
_SIOCOUTQNSD = 0x894B
_LOOKS = 10


class State(msgspec.Struct):
    """A connection; all but the last two as in its OUTSIDE_CONNECTION.

    Attributes:
        sending, receiving: what the other end has not acknowledged, and what the program has not read.
    """

    state: int
    send_sequence: int
    receive_sequence: int
    unsent_bytes: int
    segment_bytes: int
    scaled: bool
    send_scale: int
    receive_scale: int
    selective: bool
    stamped: bool
    timestamp: int
    window_sequence: int
    send_window: int
    largest_window: int
    receive_window: int
    receive_window_from: int
    sending: bytes
    receiving: bytes


class _Heal:
    """What repair changes in a socket, to be put right."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reuse = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        self.peek = sock.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF)

    def heal(self) -> None:
        """Put it right; harmless if it is."""
        with suppress(OSError):
            tell(self._sock, REPAIR, OFF_SILENTLY)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, self._reuse)
        if self.peek >= 0:
            self._sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, self.peek)


def look(socks: Sequence[socket.socket]) -> list[State | None]:
    """Return the states of some connections, whose programs are stopped; None of one that changes all the time.

    Args:
        socks: duplicates of the target's sockets.

    Raises:
        EngineError: these privileges or this kernel do not allow it.
    """
    heals = [_Heal(sock) for sock in socks]
    answer, told = os.pipe()
    child = os.fork()
    if not child:
        _tell(socks, heals, told)
    os.close(told)
    try:
        with os.fdopen(answer, "rb") as pipe:
            data = pipe.read()
    finally:
        os.waitpid(child, 0)
    try:
        found: list[State | None] | str = msgspec.msgpack.decode(data, type=list[State | None] | str)
    except msgspec.DecodeError:
        found = "the process that looks at it has ended"
    if isinstance(found, str):
        for one in heals:
            one.heal()
        raise EngineError(f"a connection of TCP cannot be looked at: {found}")
    return found


def _tell(socks: Sequence[socket.socket], heals: Sequence[_Heal], told: int) -> None:
    """Be that process."""
    try:
        answer = msgspec.msgpack.encode(_all(socks, heals))
    except OSError as error:
        answer = msgspec.msgpack.encode(os.strerror(error.errno or 0))
    except BaseException as error:  # noqa: BLE001  whatever it is, this process must not go on as its parent does
        answer = msgspec.msgpack.encode(repr(error))
    try:
        while answer:
            answer = answer[os.write(told, answer):]
    finally:
        os._exit(0)


def _all(socks: Sequence[socket.socket], heals: Sequence[_Heal]) -> list[State | None]:
    found = []
    for sock, one in zip(socks, heals, strict=True):
        try:
            tell(sock, REPAIR, ON)
            if one.peek >= 0:
                sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, -1)
            found.append(next((state for _ in range(_LOOKS) if (state := _state(sock))), None))
        finally:
            one.heal()
    return found


def _state(sock: socket.socket) -> State | None:
    """Return the state of a connection in repair; None: something came meanwhile."""
    before = _moving(sock)
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_BYTES)
    options = info[_OPTIONS_AT]
    wl1, send_window, largest, receive_window, wup = WINDOW.unpack(
        sock.getsockopt(socket.IPPROTO_TCP, REPAIR_WINDOW, WINDOW.size))
    receiving = _queue(sock, RECEIVE_QUEUE, inet_obstacles.unread(sock))
    sending = _queue(sock, SEND_QUEUE, inet_obstacles.unsent(sock) - has_sent_end(info[0]))
    if receiving is None or sending is None or _moving(sock) != before:
        return None
    return State(
        state=info[0], send_sequence=before[1], receive_sequence=before[0],
        unsent_bytes=before[2] - bool(before[2] and has_sent_end(info[0])),
        segment_bytes=sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG),
        scaled=bool(options & _WINDOW_SCALE), send_scale=info[_SCALES_AT] & 0xF, receive_scale=info[_SCALES_AT] >> 4,
        selective=bool(options & _SACK), stamped=bool(options & _TIMESTAMPS),
        timestamp=sock.getsockopt(socket.IPPROTO_TCP, TIMESTAMP) & 0xFFFF_FFFE | bool(options & _MICROSECONDS),
        window_sequence=wl1, send_window=send_window, largest_window=largest, receive_window=receive_window,
        receive_window_from=wup, sending=sending, receiving=receiving)


def _moving(sock: socket.socket) -> tuple[int, ...]:
    """Return what changes when something comes or goes: sequence numbers first."""
    numbers = []
    for queue in (RECEIVE_QUEUE, SEND_QUEUE):
        tell(sock, REPAIR_QUEUE, queue)
        numbers.append(sock.getsockopt(socket.IPPROTO_TCP, QUEUE_SEQUENCE) & 0xFFFF_FFFF)
    unsent = int.from_bytes(fcntl.ioctl(sock, _SIOCOUTQNSD, bytes(4)), "little")
    return *numbers, unsent, inet_obstacles.unread(sock), inet_obstacles.unsent(sock)


def _queue(sock: socket.socket, queue: int, length: int) -> bytes | None:
    """Return what is in a queue; None if that is not so much."""
    if not length:
        return b""
    tell(sock, REPAIR_QUEUE, queue)
    data = sock.recv(length, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return data if len(data) == length else None


def has_sent_end(state: int) -> bool:
    """Whether the end of the stream (FIN) is among what the other end has not acknowledged."""
    return state in {FIN_WAIT_1, LAST_ACK, CLOSING}
