"""Unix sockets that crd cannot save: those with another process at the other end, or that another process has too."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from crd.errors import Obstacle
from crd.target import journal
from crd.target.descriptors import open_descriptors
from crd.target.holders import description_holders, link_holders, links_inside
from crd.target.sock_diag import SocketDiagnosis, socket_inode
from crd.target.wording import process_name, process_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from crd.target.descriptors import Open
    from crd.target.nameless import Look
    from crd.target.sock_diag import UnixSocketInfo

_CONNECTED_ELSEWHERE = "Close the connection before the checkpoint, or have the program make it again when it is lost."


def unix_sockets(table: Iterable[Open]) -> dict[int, UnixSocketInfo]:
    """Return what is known of each descriptor that is a unix socket."""
    inodes = {entry.fd: inode for entry in table if (inode := socket_inode(entry.link)) is not None}
    if not inodes:
        return {}
    with SocketDiagnosis() as diagnosis:
        return {fd: found for fd, inode in inodes.items() if (found := diagnosis.unix(inode))}


def obstacles(look: Look, found: dict[int, UnixSocketInfo]) -> Iterator[Obstacle]:
    """Find those whose other end is elsewhere, in the order of their descriptors, and those that others have too.

    Args:
        look: at the process.
        found: what is known of its unix sockets.
    """
    ours = {socket_inode(link) for link in links_inside(look.inside)}
    peers = {fd: peer for fd, peer in _connected(found).items() if peer not in ours}
    to_journal = _to_the_journal(peers)
    peers = {fd: peer for fd, peer in peers.items() if fd not in to_journal}
    holders = link_holders(look.inside, {f"socket:[{peer}]" for peer in peers.values()}) if peers else {}
    links = {entry.fd: entry.link for entry in look.table if entry.fd in found and entry.fd not in to_journal}
    shared = description_holders(look.pid, links, look.inside, look.kcmp) if found and look.kcmp else {}
    for entry in look.table:
        if entry.fd in peers:
            who = holders.get(f"socket:[{peers[entry.fd]}]", [])
            yield Obstacle("fd.unix", entry.name,
                           f"is connected to {process_names(who) if who else 'another process'}", _CONNECTED_ELSEWHERE)
        elif entry.fd in shared:
            yield Obstacle("fd.shared", entry.name, f"is open elsewhere too, in {process_names(shared[entry.fd])}",
                           "Start the program without the other one, or checkpoint it when that has ended.")


def notes(pid: int) -> Iterator[str]:
    """Tell of the connections of a process that a restart makes anew."""
    table = {entry.fd: entry for entry in open_descriptors(pid)}
    for fd in sorted(_to_the_journal(_connected(unix_sockets(table.values())))):
        yield f"{process_name(pid)}, {table[fd].name} leads to the journal, and a restart connects it anew"


def _connected(found: Mapping[int, UnixSocketInfo]) -> dict[int, int]:
    return {fd: info.peer for fd, info in found.items() if info.peer and info.kind != socket.SOCK_DGRAM}


def _to_the_journal(peers: dict[int, int]) -> set[int]:
    """Return which descriptors lead to the journal, by those that they are connected to; a restart connects anew."""
    if not peers:
        return set()
    with SocketDiagnosis() as diagnosis:
        return {fd for fd, peer in peers.items()
                if (other := diagnosis.unix(peer)) and journal.namespace(other.name) is not None}
