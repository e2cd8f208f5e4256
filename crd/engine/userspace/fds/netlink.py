"""Sockets to the kernel: netlink(7)."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

from crd.engine.userspace.clash import clash
from crd.engine.userspace.fds import socket_filter, socket_options
from crd.engine.userspace.fds.kind import Kind, Making, TryLaterError
from crd.engine.userspace.fds.socket_options import SOL_NETLINK
from crd.engine.userspace.fds.unix import domain, opened
from crd.errors import Obstacle, ResourceChanged, RestartError, TargetUnsupported
from crd.image.sockets import NetlinkSocket
from crd.target.netlink import SAVED, netlink_sockets
from crd.target.sock_diag import socket_inode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crd.engine.api import Files
    from crd.engine.userspace.clash import Clash
    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.fds.table import FileTable
    from crd.engine.userspace.plan import Plan
    from crd.image.codec import Record

_SO_PROTOCOL = 38
_ADD_MEMBERSHIP, _LIST_MEMBERSHIPS = 1, 9
_GROUPS_BYTES = 1024


class NetlinkSockets(Kind):
    """A NETLINK_SOCKET each, if nothing waits in it: what the kernel has said cannot be put back."""

    def recognises(self, one: Description) -> bool:
        """By its domain and protocol, which only a duplicate tells."""
        if socket_inode(one.link) is None or domain(one.borrowed) != socket.AF_NETLINK:
            return False
        with opened(one) as sock:
            return sock.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL) in SAVED

    def dump(self, found: Sequence[Description], table: FileTable) -> Iterator[Record]:
        """Note name, groups and options.

        Raises:
            TryLaterError: something waits, or is about to.
            TargetUnsupported: it is one of another network namespace, or has a filter that cannot be saved.
        """
        known = netlink_sockets()
        for one in found:
            with opened(one) as sock:
                record = _dump(one, sock)
                table.late_records += socket_filter.dump(one, sock)
            info = known.get(one.stat.st_ino)
            if record.port and info is None:
                raise TargetUnsupported(reasons=[Obstacle("fd.socket", one.name, "is a netlink socket of another "
                                                          "network namespace", "Close it before the checkpoint.")])
            if info and (info.waiting_bytes or info.answering):
                raise TryLaterError(Obstacle("fd.socket", one.name, "is a netlink socket with messages that the "
                                             "program has not received", "Try again when it has received them."))
            yield record

    def clashes(self, plan: Plan, files: Files) -> Iterator[Clash]:  # noqa: ARG002
        """Tell which ports others have."""
        records = plan.of(NetlinkSocket)
        taken = {(info.protocol, info.port) for info in netlink_sockets().values()} if records else set()
        for record in records:
            if record.port and (record.protocol, record.port) in taken:
                yield from clash(_refuse, record)

    def make(self, making: Making) -> None:
        """Make the sockets as the task would, since the kernel asks who made them when they are used."""
        for record in making.wanted(NetlinkSocket):
            making.act_for(record.objref)
            with making.broker.as_the_task():
                fd = socket.socket(socket.AF_NETLINK, record.kind, record.protocol).detach()
            making.add(record.objref, fd)
            with socket.socket(fileno=os.dup(fd)) as sock:
                socket_options.restart(sock, record.options)
                try:
                    _name(sock, record)
                except OSError as error:
                    raise RestartError(f"a netlink socket of protocol {record.protocol}: {error.strerror}",
                                       errno=error.errno) from error
            making.set_flags(record.objref, record.flags)


def _dump(one: Description, sock: socket.socket) -> NetlinkSocket:
    words = sock.getsockopt(SOL_NETLINK, _LIST_MEMBERSHIPS, _GROUPS_BYTES)
    members = int.from_bytes(words, "little")
    port, _ = sock.getsockname()
    peer_port, peer_groups = sock.getpeername()
    return NetlinkSocket(
        objref=one.objref, flags=one.flags, owner=one.owner, kind=sock.type,
        protocol=sock.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL), port=port,
        groups=[number + 1 for number in range(members.bit_length()) if members >> number & 1],
        peer_port=peer_port, peer_groups=peer_groups, options=socket_options.dump(sock))


def _refuse(record: NetlinkSocket) -> None:
    raise ResourceChanged(f"port {record.port} of netlink protocol {record.protocol} is in use by another process",
                          path="", hint="End that process first: ss -f netlink shows it.")


def _name(sock: socket.socket, record: NetlinkSocket) -> None:
    if record.port:
        sock.bind((record.port, 0))
    for group in record.groups:
        sock.setsockopt(SOL_NETLINK, _ADD_MEMBERSHIP, struct.pack("<I", group))
    if record.peer_port or record.peer_groups:
        sock.connect((record.peer_port, record.peer_groups))
