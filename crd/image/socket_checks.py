"""What each record of ``sockets`` must be; ``checks`` has the rest."""

from __future__ import annotations

import os
from ipaddress import ip_address
from typing import TYPE_CHECKING

from crd.image.checks import check, need, need_flag
from crd.image.object_checks import declare, ip_version, need_options, need_program
from crd.image.objects import InetSocket, UnixSocket
from crd.image.sockets import MulticastGroup, NetlinkSocket, SocketFilter

if TYPE_CHECKING:
    from crd.image.checks import ImageState

DATAGRAMS, RAW = 2, 3
GROUPS_MAX = 8192
PROTOCOL_MAX = 31
INTERFACE_NAME_BYTES_MAX = 15
SOURCES_MAX = 1024
ADDRESS_BYTES = {4: 4, 6: 16}


@check.register(NetlinkSocket)
def _check_netlink_socket(record: NetlinkSocket, image: ImageState) -> None:
    declare(image, record)
    need(record.kind in {DATAGRAMS, RAW}, f"is of unknown kind {record.kind}")
    need(record.protocol <= PROTOCOL_MAX, f"has the protocol {record.protocol}")
    need(len(record.groups) <= GROUPS_MAX and all(0 < group <= GROUPS_MAX for group in record.groups),
         "is a member of a group above 8192")
    need_options(record.options)


@check.register(MulticastGroup)
def _check_multicast_group(record: MulticastGroup, image: ImageState) -> None:
    image.need_object(record.socket, InetSocket)
    need(0 < len(os.fsencode(record.interface)) <= INTERFACE_NAME_BYTES_MAX, "has no interface")
    version = ip_version(record.group)
    need(version and ip_address(record.group).is_multicast, f"is of {record.group}, which is no group")
    need_flag(record.excluding, "excluding")
    n_sources, rest = divmod(len(record.sources), ADDRESS_BYTES[version])
    need(n_sources <= SOURCES_MAX and not rest and (record.excluding or n_sources),
         f"has {len(record.sources)} bytes of sources")


@check.register(SocketFilter)
def _check_socket_filter(record: SocketFilter, image: ImageState) -> None:
    image.need_object(record.socket, UnixSocket, InetSocket, NetlinkSocket)
    need_flag(record.locked, "locked")
    need_program(record.program)
