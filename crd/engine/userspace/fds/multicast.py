"""Groups that sockets of UDP are members of, with the sources that they take or refuse (ip(7), ipv6(7), RFC 3678)."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from crd.engine.userspace.fds.kind import Kind, Making
from crd.errors import NativeError
from crd.image.sockets import MulticastGroup
from crd.native.syscall import NR, syscall
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from crd.engine.userspace.fds.description import Description

_JOIN, _BLOCK, _JOIN_FROM, _MEMBERSHIP = 42, 43, 46, 48
"""MCAST_JOIN_GROUP, MCAST_BLOCK_SOURCE, MCAST_JOIN_SOURCE_GROUP, MCAST_MSFILTER of linux/in.h."""
_EXCLUDE = 0
_ADDRESS_BYTES = 128
_INTERFACE = struct.Struct("<I4x")
_MODE_AND_COUNT = struct.Struct("<II")
_SOURCES_AT = _INTERFACE.size + _ADDRESS_BYTES + _MODE_AND_COUNT.size  # in struct group_filter
_LEVELS = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}
_KERNELS_OWN = (ipaddress.IPv4Address("224.0.0.1").packed, ipaddress.IPv6Address("ff01::1").packed,
                ipaddress.IPv6Address("ff02::1").packed, ipaddress.IPv6Address("ff02::1:ff00:0").packed[:13])
"""How the groups begin that an interface is a member of by itself (RFC 1112, RFC 4291)."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class _Joined(NamedTuple):
    """That somebody on this host is a member of a group."""

    number: int  # of the interface
    interface: str
    group: IPAddress


class MulticastGroups(Kind):
    """MULTICAST_GROUPs, which belong to sockets of UDP; they are joined again at last, behind filters."""

    def recognises(self, one: Description) -> bool:
        """No descriptor is open on a membership."""
        del one
        return False

    def make(self, making: Making) -> None:
        """Nothing."""

    def arm(self, making: Making) -> None:
        """Join them; one that cannot be joined any more is no error, as it is none if an interface goes."""
        for record in making.plan.of(MulticastGroup):
            if record.socket in making.ours:
                try:
                    _join(making.ours[record.socket], record)
                except OSError as error:
                    making.notes.append(f"a UDP socket is no member of {record.group} at {record.interface} any more: "
                                        f"{error.strerror}")


class Memberships:
    """What groups anybody on this host is a member of, read once if there is any socket to look at."""

    def __init__(self) -> None:
        self._joined: list[_Joined] | None = None

    def dump(self, one: Description, sock: socket.socket) -> Iterator[MulticastGroup]:
        """Yield the groups that a socket is a member of: the kernel tells it only of a group that is asked for."""
        if self._joined is None:
            self._joined = [*_joined()]
        for number, interface, group in self._joined:
            if group.version == 4 or sock.family == socket.AF_INET6:
                found = _look(sock.fileno(), number, group)
                if found is not None:
                    excluding, sources = found
                    yield MulticastGroup(socket=one.objref, interface=interface, group=str(group), excluding=excluding,
                                         sources=sources)


def _joined() -> Iterator[_Joined]:
    """Yield the groups of /proc/net/igmp and igmp6; those that none but the kernel itself has joined are left out."""
    for number, interface, packed, users in (*_joined_by_ipv4(), *_joined_by_ipv6()):
        if users > 1 or not packed.startswith(_KERNELS_OWN):
            yield _Joined(number, interface, ipaddress.ip_address(packed))


def _lines(name: str) -> list[str]:
    """Return the lines of a table that this kernel may not have."""
    return procfs.read("net", name).splitlines() if (procfs.PROC / "net" / name).exists() else []


def _joined_by_ipv4() -> Iterator[tuple[int, str, bytes, int]]:
    """Yield number and name of the interface, the group, and how many have joined it."""
    number, interface = 0, ""
    for line in _lines("igmp")[1:]:
        words = line.split()
        if line.startswith("\t"):
            yield number, interface, bytes.fromhex(words[0])[::-1], int(words[1])
        else:
            number, interface = int(words[0]), words[1]


def _joined_by_ipv6() -> Iterator[tuple[int, str, bytes, int]]:
    for line in _lines("igmp6"):
        number, interface, group, users, *_ = line.split()
        yield int(number), interface, bytes.fromhex(group), int(users)


def _look(fd: int, number: int, group: IPAddress) -> tuple[bool, bytes] | None:
    """Return whether sources are excluded, and which are or (if not) which are taken; None: it is no member.

    Source: ip_mc_gsfget in net/ipv4/igmp.c, ip6_mc_msfget in net/ipv6/mcast.c.
    """
    n_sources = 0
    while True:
        room = bytearray(_INTERFACE.pack(number) + _address(group) + _MODE_AND_COUNT.pack(0, n_sources)
                         + bytes(n_sources * _ADDRESS_BYTES))
        try:
            syscall(NR.GETSOCKOPT, fd, _LEVELS[group.version], _MEMBERSHIP, room,
                    bytearray(len(room).to_bytes(4, "little")))
        except NativeError:
            return None
        mode, n_found = _MODE_AND_COUNT.unpack_from(room, _SOURCES_AT - _MODE_AND_COUNT.size)
        if n_found <= n_sources:
            return mode == _EXCLUDE, b"".join(_bare(room, _SOURCES_AT + at * _ADDRESS_BYTES, group.version)
                                               for at in range(n_found))
        n_sources = n_found


def _address(address: IPAddress) -> bytes:
    """Return a struct sockaddr_storage."""
    family, at = (socket.AF_INET, 4) if address.version == 4 else (socket.AF_INET6, 8)
    return (struct.pack("<H", family).ljust(at, b"\0") + address.packed).ljust(_ADDRESS_BYTES, b"\0")


def _bare(room: bytearray, start: int, version: int) -> bytes:
    """Return the address of a struct sockaddr_storage."""
    at, length = (4, 4) if version == 4 else (8, 16)
    return bytes(room[start + at:start + at + length])


def _join(fd: int, record: MulticastGroup) -> None:
    """Join a group; raises OSError."""
    group = ipaddress.ip_address(record.group)
    where = _INTERFACE.pack(socket.if_nametoindex(record.interface)) + _address(group)
    length = len(group.packed)
    sources = [_address(ipaddress.ip_address(record.sources[at:at + length]))
               for at in range(0, len(record.sources), length)]
    with socket.socket(fileno=os.dup(fd)) as sock:
        for option, value in _steps(where, sources, excluding=bool(record.excluding)):
            sock.setsockopt(_LEVELS[group.version], option, value)


def _steps(where: bytes, sources: Iterable[bytes], *, excluding: bool) -> Iterator[tuple[int, bytes]]:
    if excluding:
        yield _JOIN, where
    for source in sources:
        yield _BLOCK if excluding else _JOIN_FROM, where + source
