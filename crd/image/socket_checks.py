"""What each record of ``sockets`` must be; ``checks`` has the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.image.checks import check, need, need_flag
from crd.image.object_checks import declare, need_options, need_program
from crd.image.objects import InetSocket, UnixSocket
from crd.image.sockets import NetlinkSocket, SocketFilter

if TYPE_CHECKING:
    from crd.image.checks import ImageState

DATAGRAMS, RAW = 2, 3
GROUPS_MAX = 8192
PROTOCOL_MAX = 31


@check.register(NetlinkSocket)
def _check_netlink_socket(record: NetlinkSocket, image: ImageState) -> None:
    declare(image, record)
    need(record.kind in {DATAGRAMS, RAW}, f"is of unknown kind {record.kind}")
    need(record.protocol <= PROTOCOL_MAX, f"has the protocol {record.protocol}")
    need(len(record.groups) <= GROUPS_MAX and all(0 < group <= GROUPS_MAX for group in record.groups),
         "is a member of a group above 8192")
    need_options(record.options)


@check.register(SocketFilter)
def _check_socket_filter(record: SocketFilter, image: ImageState) -> None:
    image.need_object(record.socket, UnixSocket, InetSocket, NetlinkSocket)
    need_flag(record.locked, "locked")
    need_program(record.program)
