"""Connections that wait to be accepted: their other end is in no descriptor, so only the program could take them.

One from within the target is waited for.  One from elsewhere cannot be brought back, but hinders nothing, or anybody
could keep a server from being saved: it is told of, and its client sees it end with the listener.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from crd.engine.userspace.fds import tcp_state
from crd.engine.userspace.fds.kind import TryLaterError
from crd.errors import Obstacle
from crd.image.objects import plain_address
from crd.target import inet_obstacles

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.fds.table import FileTable
    from crd.image.objects import InetSocket

_WAITING_AT = 24  # in struct tcp_info: of a listening socket tcpi_unacked is how many wait


def own(one: Description, code: str) -> TryLaterError:
    """Return what to say of an end in the target whose connection has not been accepted."""
    return TryLaterError(Obstacle(code, one.name, "is a connection that has not been accepted",
                                  "Try again when it is."))


def tell(one: Description, waiting: int, table: FileTable) -> None:
    """Note how many connections from elsewhere wait at a listener."""
    if waiting:
        table.lost.append(f"{one.name}: {waiting} connection{'s' * (waiting != 1)} from outside had not been accepted "
                          "yet, and cannot be brought back")


def look(records: Iterable[InetSocket], outside: Iterable[InetSocket], by_objref: Mapping[int, Description],
         table: FileTable) -> None:
    """Look at the listeners of TCP.

    Args:
        records: of all sockets.
        outside: those that are connected to nobody who has a descriptor in the target.
        by_objref: the sockets.
        table: is told.

    Raises:
        TryLaterError: a connection from within waits.
    """
    waiting = {record.objref: count for record in records if record.listening
               if (count := _count(by_objref[record.objref]))}
    ends = inet_obstacles.unaccepted() if waiting else set()
    for record in outside:
        if (plain_address(record.remote_address), record.remote_port,
                plain_address(record.local_address), record.local_port) in ends:
            raise own(by_objref[record.objref], "fd.tcp")
    for objref, count in waiting.items():
        tell(by_objref[objref], count, table)


def _count(one: Description) -> int:
    with socket.socket(fileno=one.borrowed) as sock:
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, tcp_state.INFO_BYTES)
        finally:
            sock.detach()
    count: int = struct.unpack_from("<I", info, _WAITING_AT)[0]
    return count
