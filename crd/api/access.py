"""Who is at the other end of the socket, and who is let in.

Root and the members of the group ``crd`` may do everything; what others may do depends on their uid
(``crd.daemon.handlers``).
"""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from collections import Counter
from dataclasses import dataclass

from crd.errors import Busy

GROUP = "crd"
ROOT_UID = 0

_UCRED = struct.Struct("iII")
"""struct ucred of unix(7): pid, uid, gid."""
_SO_PEERGROUPS = 59
"""include/uapi/asm-generic/socket.h, since Linux 4.13: the supplementary groups at the time of connect(2)."""
_GROUP_BYTES_MAX = 1024
"""What getsockopt of Python takes at most: 256 groups."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as the kernel says, at the time of connect(2).

    Attributes:
        pid: of the process that connected, as seen here; 0 if it is in a pid namespace that is not visible from here.
        groups: the primary and the supplementary ones.
        is_admin: whether it is root or a member of the group ``crd``.
    """

    uid: int
    gid: int
    pid: int
    groups: frozenset[int]
    is_admin: bool


def peer_of(connection: socket.socket, admin_gid: int | None) -> Peer:
    """Ask the kernel who connected.

    Raises:
        OSError: the connection is gone.
    """
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    groups = frozenset((gid, *_supplementary_groups(connection, uid, gid)))
    return Peer(uid, gid, pid, groups, is_admin=uid == ROOT_UID or admin_gid in groups)


def _supplementary_groups(connection: socket.socket, uid: int, gid: int) -> list[int]:
    try:
        packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUP_BYTES_MAX)
        return [group for (group,) in struct.iter_unpack("I", packed)]
    except OSError:  # more groups than fit: the user database knows them too
        try:
            return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
        except KeyError:
            return []


def group_id(name: str) -> int | None:
    """Return the gid of a group, or None if there is no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of the daemon a connection, a user and all together may take.

    Attributes:
        connections: at a time.
        connections_kept: how many of them are kept for root and the group, and from any single one of these.
        connections_per_uid: of one user who is neither.
        connections_per_process: whoever's it is: a program that leaks them shuts nobody else out.
        calls_pending: of one connection, sent before the earlier ones are answered.
        idle_seconds: between an answer and the next call.
        message_seconds: from the first byte of a call to its last.
        drain_seconds: until the other end has taken a reply.
    """

    connections: int = 256
    connections_kept: int = 32
    connections_per_uid: int = 32
    connections_per_process: int = 128
    calls_pending: int = 64
    idle_seconds: float = 600.0
    message_seconds: float = 10.0
    drain_seconds: float = 10.0

    @classmethod
    def within(cls, descriptors: int) -> Limits:
        """Return what leaves most of a process's descriptors to its work: a connection takes up to two of them."""
        connections = min(cls().connections, descriptors // 4)
        few = max(1, connections // 8)
        return cls(connections=connections, connections_kept=few, connections_per_uid=few,
                   connections_per_process=max(1, connections // 2))


class Admission:
    """Counts who is in."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_uid: Counter[int] = Counter()
        self._by_pid: Counter[int] = Counter()

    def admit(self, peer: Peer) -> None:
        """Let a peer in if there is room for it; then ``leave`` must follow.

        Raises:
            Busy: there is none.
        """
        limits, everybody = self._limits, self._by_uid.total()
        for_others = limits.connections - limits.connections_kept
        if peer.pid and self._by_pid[peer.pid] >= limits.connections_per_process:
            raise _too_many(f"process {peer.pid} has {self._by_pid[peer.pid]} connections")
        if self._by_uid[peer.uid] >= (for_others if peer.is_admin else limits.connections_per_uid):
            raise _too_many(f"user {peer.uid} has {self._by_uid[peer.uid]} connections")
        if everybody >= (limits.connections if peer.is_admin else for_others):
            raise _too_many(f"there are {everybody} connections")
        self._by_uid[peer.uid] += 1
        self._by_pid[peer.pid] += 1

    def leave(self, peer: Peer) -> None:
        """Count a peer that was let in as gone."""
        for counts, key in ((self._by_uid, peer.uid), (self._by_pid, peer.pid)):
            counts[key] -= 1
            if not counts[key]:
                del counts[key]


def _too_many(what: str) -> Busy:
    return Busy(f"{what} to the daemon already", hint="Close some, or try again in a while.")
