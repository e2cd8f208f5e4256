"""What decides which messages a socket gets: a program of classic BPF (SO_ATTACH_FILTER, socket(7))."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from crd.engine.userspace import bpf
from crd.engine.userspace.fds.kind import Kind, Making
from crd.errors import NativeError, Obstacle, RestartError, TargetUnsupported
from crd.image.sockets import SocketFilter
from crd.native.syscall import NR, address, syscall

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.engine.userspace.fds.description import Description

_ATTACH_FILTER, _LOCK_FILTER = 26, 44


class SocketFilters(Kind):
    """SOCKET_FILTERs, which the kinds of sockets dump with ``dump``; they are set again when crd sends no more."""

    def recognises(self, one: Description) -> bool:
        """No descriptor is open on a filter."""
        del one
        return False

    def make(self, making: Making) -> None:
        """Nothing."""

    def arm(self, making: Making) -> None:
        """Set them; raises RestartError."""
        for record in making.plan.of(SocketFilter):
            if record.socket in making.ours:
                _set(making.ours[record.socket], record)


def dump(one: Description, sock: socket.socket) -> Iterator[SocketFilter]:
    """Yield the filter of a socket, if it has one.

    Raises:
        TargetUnsupported: it is one of extended BPF, which nobody can read.
    """
    try:
        length = _look(sock.fileno(), bytearray(1), 0)
        program = bytearray(length * bpf.INSTRUCTION.size)
        _look(sock.fileno(), program, length)
    except NativeError as error:
        raise TargetUnsupported(reasons=[Obstacle("fd.filter", one.name, "has a filter of extended BPF",
                                                  "Have the program take it off (SO_DETACH_BPF).")]) from error
    if length:
        yield SocketFilter(socket=one.objref, locked=sock.getsockopt(socket.SOL_SOCKET, _LOCK_FILTER),
                           program=bytes(program))


def _look(fd: int, room: bytearray, length: int) -> int:
    """Return how many instructions a filter has; lengths are counted in these (net/core/filter.c, sk_get_filter)."""
    counted = bytearray(length.to_bytes(4, "little"))
    syscall(NR.GETSOCKOPT, fd, socket.SOL_SOCKET, _ATTACH_FILTER, room, counted)
    return int.from_bytes(counted, "little")


def _set(fd: int, record: SocketFilter) -> None:
    with socket.socket(fileno=os.dup(fd)) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, bpf.fprog(record.program, address(record.program)))
            sock.setsockopt(socket.SOL_SOCKET, _LOCK_FILTER, record.locked)
        except OSError as error:
            raise RestartError(f"the filter of a socket: {error.strerror}", errno=error.errno) from error
