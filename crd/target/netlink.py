"""Netlink sockets as the kernel lists them (netlink(7), net/netlink/af_netlink.c)."""

from __future__ import annotations

import socket
from typing import NamedTuple

from crd.target import procfs

SAVED = {socket.NETLINK_ROUTE, 4, 7, 9, 15, 16}
"""ROUTE, SOCK_DIAG, SELINUX, AUDIT, KOBJECT_UEVENT, GENERIC: of such a socket the kernel keeps but its groups."""


class NetlinkInfo(NamedTuple):
    """A netlink socket.

    Attributes:
        protocol: NETLINK_*.
        port: nl_pid, 0 = none yet.
        waiting_bytes: what waits to be received.
        answering: whether the kernel is about to say more.
    """

    protocol: int
    port: int
    waiting_bytes: int
    answering: bool


def netlink_sockets() -> dict[int, NetlinkInfo]:
    """Return all of our network namespace by inode, but those that have neither a port nor sent anything yet."""
    lines = [line.split() for line in procfs.read("net", "netlink").splitlines()[1:]]
    return {int(words[9]): NetlinkInfo(int(words[1]), int(words[2]), int(words[4]), words[6] != "0") for words in lines}
