"""Connections of TCP that are held: what their other end sends is not seen by the kernel, so it answers nothing.

Without that it would tell the other end that nobody is there (RST) as long as a task is not restarted.  The other end
sends again what was not acknowledged, so nothing is lost.  What is held for a task that is gone ends by itself after a
time; so does everything else with the process that holds it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from crd.engine.userspace.fds import nftables
from crd.engine.userspace.fds.nftables import Firewall, attribute, expression, nested, number, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from crd.engine.userspace.fds.nftables import Message

KEEP_SECONDS = 3600
"""As long the other end may wait for a restart; most give up earlier (tcp_retries2: 15 minutes)."""
MARK = 0x6372_6401
"""SO_MARK of packets that are seen all the same."""

_TABLE = "crd_connections"
_OWNED = 2  # NFT_TABLE_F_OWNER
_LOCAL_IN, _PRIORITY = 1, -300
_FIRST_REGISTER = 8  # NFT_REG32_00
_PROTOCOL, _IP_VERSION, _PACKET_MARK = 16, 15, 3  # NFT_META_*
_SAME, _OTHER = 0, 1  # NFT_CMP_*
_NETWORK, _TRANSPORT = 1, 2  # NFT_PAYLOAD_*_HEADER
_SYN_AND_ACK, _SYN, _TCP_FLAGS_AT = 0x12, 0x02, 13
_TIMEOUT = 0x10  # NFT_SET_TIMEOUT
_ELEMENTS_MAX = 256
"""So many fit into one message."""


@dataclass(frozen=True, slots=True)
class Ends:
    """The two ends of a connection: addresses in numbers, and ports."""

    local: str
    local_port: int
    remote: str
    remote_port: int

    def __str__(self) -> str:
        return f"{self.local} port {self.local_port} to {self.remote} port {self.remote_port}"

    @property
    def version(self) -> int:
        """Of IP, as it is on the wire."""
        return 4 if len(packed(self.local)) == 4 else 6

    def key(self) -> bytes:
        """Return what packets from the other end are known by, as registers of 32 bits."""
        return (packed(self.remote) + struct.pack(">HH", self.remote_port, 0)
                + packed(self.local) + struct.pack(">HH", self.local_port, 0))


def packed(address: str) -> bytes:
    """Return an address as it is on the wire: of IPv4 also where a socket of IPv6 has it."""
    parsed = ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).packed


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where in a packet of IP the addresses are."""

    version: int
    family: int  # NFPROTO_*
    source_at: int
    destination_at: int
    address_bytes: int
    key_type: int  # for those who list the set: types of nft(8), 6 bits each

    @property
    def set_name(self) -> str:
        return f"held{self.version}"

    @property
    def key_bytes(self) -> int:
        return 2 * self.address_bytes + 8


_IPV4 = _Layout(4, socket.AF_INET, 12, 16, 4, ((7 << 6 | 13) << 6 | 7) << 6 | 13)
_IPV6 = _Layout(6, socket.AF_INET6, 8, 24, 16, ((8 << 6 | 13) << 6 | 8) << 6 | 13)


class Hold:
    """Holds connections as long as it is not closed, and as its process lives; raises OSError where that cannot be."""

    def __init__(self) -> None:
        """Hold none yet."""
        self._table = f"{_TABLE}_{os.getpid()}"
        self._firewall = Firewall()
        self._firewall.change(_new_table(self._table, _OWNED, 0))

    def add(self, connections: Sequence[Ends]) -> None:
        """Hold these, too."""
        self._firewall.change(_elements(nftables.NEW_ELEMENT, self._table, connections))

    def close(self) -> None:
        """Let all go."""
        self._firewall.close()


def keep(connections: Sequence[Ends]) -> None:
    """Hold connections for an hour, whatever becomes of us; raises OSError."""
    with Firewall() as firewall:
        if not firewall.ask(nftables.GET_TABLE, text(1, _TABLE)):
            with suppress(FileExistsError):  # by another crd just now
                firewall.change(_new_table(_TABLE, 0, _TIMEOUT))
        firewall.change(_elements(nftables.NEW_ELEMENT, _TABLE, connections))


def kept(connections: Iterable[Ends]) -> set[Ends]:
    """Return those that are held by ``keep``; none if we may not know."""
    found = set()
    try:
        with Firewall() as firewall:
            for one in connections:
                [(_, _, asked)] = _elements(nftables.GET_ELEMENT, _TABLE, [one])
                if firewall.ask(nftables.GET_ELEMENT, asked):
                    found.add(one)
    except OSError:
        return set()
    return found


def let_go(connections: Iterable[Ends]) -> None:
    """End what ``keep`` has begun; what is not held is left as it is."""
    with Firewall() as firewall:
        for one in connections:
            try:
                firewall.change(_elements(nftables.DELETE_ELEMENT, _TABLE, [one]))
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise


def _new_table(table: str, flags: int, set_flags: int) -> list[Message]:
    hook = nested(4, number(1, _LOCAL_IN), attribute(2, struct.pack(">i", _PRIORITY)))
    return [(nftables.NEW_TABLE, nftables.CREATE | nftables.EXCLUSIVE, text(1, table) + number(2, flags)),
            (nftables.NEW_CHAIN, nftables.CREATE, text(1, table) + text(3, "input") + hook + text(7, "filter")),
            *(message for order, layout in enumerate((_IPV4, _IPV6), 1)
              for message in (_new_set(table, layout, order, set_flags), _new_rule(table, layout)))]


def _new_set(table: str, layout: _Layout, order: int, flags: int) -> Message:
    timeout = attribute(11, struct.pack(">Q", KEEP_SECONDS * 1000)) if flags & _TIMEOUT else b""
    return nftables.NEW_SET, nftables.CREATE, b"".join([
        text(1, table), text(2, layout.set_name), number(3, flags), number(4, layout.key_type),
        number(5, layout.key_bytes), number(10, order), timeout])


def _new_rule(table: str, layout: _Layout) -> Message:
    """Drop packets of TCP of held connections; neither ours, nor one that begins another connection."""
    words = layout.address_bytes // 4
    rule = [
        _meta(_PROTOCOL), _compare(_SAME, bytes([socket.IPPROTO_TCP])),
        _meta(_IP_VERSION), _compare(_SAME, bytes([layout.family])),
        _meta(_PACKET_MARK), _compare(_OTHER, struct.pack("<I", MARK)),
        _payload(_TRANSPORT, _TCP_FLAGS_AT, 1, _FIRST_REGISTER),
        expression("bitwise", number(1, _FIRST_REGISTER), number(2, _FIRST_REGISTER), number(3, 1),
                   nested(4, attribute(1, bytes([_SYN_AND_ACK]))), nested(5, attribute(1, bytes(1)))),
        _compare(_OTHER, bytes([_SYN])),
        _payload(_NETWORK, layout.source_at, layout.address_bytes, _FIRST_REGISTER),
        _payload(_TRANSPORT, 0, 2, _FIRST_REGISTER + words),
        _payload(_NETWORK, layout.destination_at, layout.address_bytes, _FIRST_REGISTER + words + 1),
        _payload(_TRANSPORT, 2, 2, _FIRST_REGISTER + 2 * words + 1),
        expression("lookup", text(1, layout.set_name), number(2, _FIRST_REGISTER)),
        expression("immediate", number(1, 0), nested(2, nested(2, number(1, 0)))),  # verdict: drop
    ]
    return nftables.NEW_RULE, nftables.CREATE | nftables.APPEND, text(1, table) + text(2, "input") + nested(4, *rule)


def _meta(key: int) -> bytes:
    return expression("meta", number(1, _FIRST_REGISTER), number(2, key))


def _compare(how: int, value: bytes) -> bytes:
    return expression("cmp", number(1, _FIRST_REGISTER), number(2, how), nested(3, attribute(1, value)))


def _payload(base: int, offset: int, length: int, register: int) -> bytes:
    return expression("payload", number(1, register), number(2, base), number(3, offset), number(4, length))


def _elements(kind: int, table: str, connections: Sequence[Ends]) -> list[Message]:
    flags = nftables.CREATE if kind == nftables.NEW_ELEMENT else 0
    return [(kind, flags, text(1, table) + text(2, layout.set_name)
             + nested(3, *(nested(1, nested(1, attribute(1, one.key()))) for one in some)))
            for layout in (_IPV4, _IPV6) for some in _pieces(layout, connections)]


def _pieces(layout: _Layout, connections: Sequence[Ends]) -> Iterator[list[Ends]]:
    fitting = [one for one in connections if one.version == layout.version]
    for at in range(0, len(fitting), _ELEMENTS_MAX):
        yield fitting[at:at + _ELEMENTS_MAX]
