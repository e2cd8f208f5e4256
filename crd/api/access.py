"""Who is at the other end of the socket, and who is let in.

Root and the members of the group ``crd`` may do everything; what others may do depends on their uid (``interfaces.md``
section 3).
"""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from collections import Counter
from dataclasses import dataclass

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
        connections_kept: how many of them are kept for root and the group.
        connections_per_uid: of one user who is neither.
        calls_pending: of one connection, sent before the earlier ones are answered.
        idle_seconds: between an answer and the next call.
        message_seconds: from the first byte of a call to its last.
        drain_seconds: until the other end has taken a reply.
    """

    connections: int = 256
    connections_kept: int = 32
    connections_per_uid: int = 32
    calls_pending: int = 64
    idle_seconds: float = 600.0
    message_seconds: float = 10.0
    drain_seconds: float = 10.0

    @classmethod
    def within(cls, descriptors: int) -> Limits:
        """Return what leaves most of a process's descriptors to its work: a connection takes up to two of them."""
        connections = min(cls().connections, descriptors // 4)
        few = max(1, connections // 8)
        return cls(connections=connections, connections_kept=few, connections_per_uid=few)


class Admission:
    """Counts who is in."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_uid: Counter[int] = Counter()

    def admit(self, peer: Peer) -> bool:
        """Let a peer in if there is room for it; ``leave`` must follow if there was."""
        room = self._limits.connections
        if not peer.is_admin:
            room -= self._limits.connections_kept
            if self._by_uid[peer.uid] >= self._limits.connections_per_uid:
                return False
        if self._by_uid.total() >= room:
            return False
        self._by_uid[peer.uid] += 1
        return True

    def leave(self, peer: Peer) -> None:
        """Count a peer that was let in as gone."""
        self._by_uid[peer.uid] -= 1
        if not self._by_uid[peer.uid]:
            del self._by_uid[peer.uid]
