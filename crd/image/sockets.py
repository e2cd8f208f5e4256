"""The records of netlink sockets (netlink(7)), and of what all sockets have; ``objects`` says where they stand."""

from __future__ import annotations

from crd.image.codec import Record, Struct
from crd.image.fields import U8, U32, U64, Bytes, Items, Text  # noqa: TC001  # evaluated when the classes are made
from crd.image.owner import Owner  # noqa: TC001


class SocketOption(Struct):
    """setsockopt(2), if it is not as in a new socket; the value as a number, little-endian."""

    level: U32
    name: U32
    bytes: U32
    low: U64
    high: U64


class NetlinkSocket(Record, type=0x4352006D):
    """A netlink socket in which nothing waits."""

    objref: U32
    flags: U32  # F_GETFL
    owner: Owner
    kind: U32  # SOCK_RAW or SOCK_DGRAM
    protocol: U32  # NETLINK_*
    port: U32  # nl_pid, 0 = none yet
    groups: Items[U32]  # numbers of the groups that it is a member of
    peer_port: U32  # connect(2), 0 = the kernel
    peer_groups: U32  # a mask
    options: Items[SocketOption]


class MulticastGroup(Record, type=0x43520072):
    """A group that a socket of UDP is a member of."""

    socket: U32  # objref
    interface: Text
    group: Text
    excluding: U8  # all but the sources, or these alone
    sources: Bytes  # their addresses, 4 or 16 bytes each


class SocketFilter(Record, type=0x4352006E):
    """What decides which messages a socket gets (SO_ATTACH_FILTER)."""

    socket: U32  # objref
    locked: U8  # SO_LOCK_FILTER
    program: Bytes  # struct sock_filter, 8 bytes an instruction
