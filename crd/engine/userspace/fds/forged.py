"""Packets of TCP that look as if they came from the other end of a connection (raw(7), RFC 9293).

A socket in repair can be told all but that its peer has sent its end, or has acknowledged ours: that has to arrive.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from crd.engine.userspace.fds.network_hold import MARK, packed

if TYPE_CHECKING:
    from crd.engine.userspace.fds.network_hold import Ends

_SO_MARK = 36
_IPV6_HDRINCL = 36
_FIN, _ACK = 0x01, 0x10
_WINDOW = 0xFFFF
_WORDS, _HOPS = 5, 64


def send(ends: Ends, sequence: int, acknowledged: int, *, end: bool) -> None:
    """Send ourselves one, which is seen though the connection is held.

    Args:
        ends: of the connection, as our socket sees it.
        sequence: of the other end.
        acknowledged: of ours.
        end: the other end sends nothing after this (FIN).

    Raises:
        OSError: these privileges or this kernel do not allow it.
    """
    source, destination = packed(ends.remote), packed(ends.local)
    segment = struct.pack(">HHIIBBHHH", ends.remote_port, ends.local_port, sequence & 0xFFFF_FFFF,
                          acknowledged & 0xFFFF_FFFF, _WORDS << 4, _ACK | (_FIN if end else 0), _WINDOW, 0, 0)
    pseudo = source + destination + struct.pack(">II", len(segment), socket.IPPROTO_TCP)
    segment = segment[:16] + struct.pack(">H", _checksum(pseudo + segment)) + segment[18:]
    if len(source) == 4:
        family, header = socket.AF_INET, struct.pack(
            ">BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, _HOPS, socket.IPPROTO_TCP, 0) + source + destination
    else:
        family, header = socket.AF_INET6, struct.pack(
            ">IHBB", 6 << 28, len(segment), socket.IPPROTO_TCP, _HOPS) + source + destination
    with socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as raw:
        raw.setsockopt(socket.SOL_SOCKET, _SO_MARK, MARK)
        if family == socket.AF_INET6:
            raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
        raw.sendto(header + segment, (socket.inet_ntop(family, destination), 0))


def _checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
