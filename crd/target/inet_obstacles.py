"""Network sockets that crd cannot save: connections that it may not look at, and what another process has too."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import termios
from typing import TYPE_CHECKING

from crd.errors import Obstacle
from crd.target import procfs
from crd.target.holders import description_holders, links_inside
from crd.target.netlink import SAVED, netlink_sockets
from crd.target.sock_diag import LISTENING, socket_inode
from crd.target.wording import process_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.target.nameless import Look

_CONNECTED = ("is a TCP connection to a process outside, which cannot be looked at without CAP_NET_ADMIN",
              "Run crd as root, or close the connection before the checkpoint.")
_CAP_NET_ADMIN = 12
_SAVED = {"TCP", "TCPv6", "UDP", "UDPv6", "NETLINK"}
_ACCEPTABLE = {1, 8}
"""TCP_ESTABLISHED, TCP_CLOSE_WAIT."""
_TABLES = {socket.SOCK_STREAM: ("tcp", "tcp6"), socket.SOCK_DGRAM: ("udp", "udp6")}


def unsent(sock: socket.socket) -> int:
    """Return how many bytes have not been sent yet (SIOCOUTQ)."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), "little")


def unread(sock: socket.socket) -> int:
    """Return how many bytes have been received and not been read (SIOCINQ)."""
    return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), "little")


def network_sockets(look: Look) -> set[int]:
    """Return the descriptors that are sockets of TCP, UDP and the protocols of netlink that crd saves."""
    inodes = {entry.fd: inode for entry in look.table if (inode := socket_inode(entry.link))}
    protocols = {fd: protocol(look.pid, fd) for fd in inodes}
    netlink = netlink_sockets() if "NETLINK" in protocols.values() else {}
    others = {inode for inode, info in netlink.items() if info.protocol not in SAVED}
    return {fd for fd, inode in inodes.items() if protocols[fd] in _SAVED and inode not in others}


def protocol(pid: int, fd: int) -> str:
    """Return the protocol of a socket as /proc/net/protocols has it."""
    try:
        return os.getxattr(procfs.PROC / str(pid) / "fd" / str(fd), "system.sockprotoname").rstrip(b"\0").decode()
    except OSError:  # closed meanwhile
        return ""


def _lines(kind: int) -> Iterator[list[str]]:
    for name in _TABLES[socket.SocketKind(kind)]:
        for line in procfs.read("net", name).split("\n")[1:-1]:
            yield line.split()


def bound_ports(kind: int) -> Iterator[tuple[int, int]]:
    """Yield inode and port of all sockets of TCP (SOCK_STREAM) or UDP (SOCK_DGRAM) that have one."""
    for words in _lines(kind):
        yield int(words[9]), int(words[1].rpartition(":")[2], 16)


def unaccepted() -> set[tuple[str, int, str, int]]:
    """Return addresses and ports, ours and the other end's, of connections of TCP that wait to be accepted."""
    return {(*_end(words[1]), *_end(words[2])) for words in _lines(socket.SOCK_STREAM)
            if words[9] == "0" and int(words[3], 16) in _ACCEPTABLE}


def _end(text: str) -> tuple[str, int]:
    """Return an address of /proc/net/tcp or tcp6, which is in words of the machine's byte order, and a port."""
    words, port = text.split(":")
    address = ipaddress.ip_address(b"".join(bytes.fromhex(words[at:at + 8])[::-1] for at in range(0, len(words), 8)))
    return str(getattr(address, "ipv4_mapped", None) or address), int(port, 16)


def obstacles(look: Look, fds: set[int]) -> Iterator[Obstacle]:
    """Find connections of TCP that we may not look at, in the order of their descriptors, and what others have too."""
    if not fds:
        return
    connected = set() if _may_repair() else _connected_elsewhere(
        {socket_inode(link) for link in links_inside(look.inside)})
    links = {entry.fd: entry.link for entry in look.table if entry.fd in fds}
    shared = description_holders(look.pid, links, look.inside, look.kcmp) if look.kcmp else {}
    for entry in look.table:
        if entry.fd in fds and socket_inode(entry.link) in connected:
            yield Obstacle("fd.tcp", entry.name, *_CONNECTED)
        elif entry.fd in shared:
            yield Obstacle("fd.shared", entry.name, f"is open elsewhere too, in {process_names(shared[entry.fd])}",
                           "Start the program without the other one, or checkpoint it when that has ended.")


def _may_repair() -> bool:
    return bool(procfs.status("self").capabilities("Eff") >> _CAP_NET_ADMIN & 1)


def _connected_elsewhere(ours: set[int | None]) -> set[int]:
    """Return the inodes among these whose connection has its other end not among these."""
    ends = {(_plain(words[1]), _plain(words[2])): int(words[9]) for words in _lines(socket.SOCK_STREAM)
            if int(words[3], 16) != LISTENING and int(words[9]) in ours}
    return {inode for (local, remote), inode in ends.items() if (remote, local) not in ends}


def _plain(end: str) -> str:
    """Return an address of /proc/net/tcp6 as /proc/net/tcp has it, if it is one of IPv4."""
    return end.removeprefix("0000000000000000FFFF0000")
