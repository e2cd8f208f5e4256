"""Open file descriptions: whose they are, and which descriptors share one."""

from __future__ import annotations

import fcntl
import struct
from dataclasses import dataclass
from functools import cmp_to_key, partial
from typing import TYPE_CHECKING

from crd.native.syscall import kcmp

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

F_SETSIG, F_GETSIG, F_SETOWN_EX, F_GETOWN_EX = 10, 11, 15, 16
_OWNER = struct.Struct("<ii")
_KCMP_FILE = 0


@dataclass(frozen=True, slots=True)
class Owner:
    """Who gets SIGIO (fcntl(2), F_SETOWN_EX): kind F_OWNER_*, pid 0 = nobody, and which signal instead."""

    kind: int
    pid: int
    signal: int


def dump_owner(fd: int) -> Owner:
    """Ask a duplicate of the descriptor; O_PATH descriptors have no owner."""
    try:
        kind, pid = _OWNER.unpack(fcntl.fcntl(fd, F_GETOWN_EX, _OWNER.pack(0, 0)))
        return Owner(kind, pid, fcntl.fcntl(fd, F_GETSIG))
    except OSError:
        return Owner(0, 0, 0)


def restart_owner(fd: int, owner: Owner) -> None:
    """Set the owner again, which is there by now."""
    if owner.signal:
        fcntl.fcntl(fd, F_SETSIG, owner.signal)
    if owner.pid:
        fcntl.fcntl(fd, F_SETOWN_EX, _OWNER.pack(owner.kind, owner.pid))


def group(pid: int, fds: Sequence[int], keys: Mapping[int, Hashable]) -> list[list[int]]:
    """Group descriptors by the open file description they share.

    Args:
        pid: of the process.
        fds: its descriptors.
        keys: what equal descriptions have in common at least (device, inode, flags, position), by descriptor.
    """
    alike: dict[Hashable, list[int]] = {}
    for fd in fds:
        alike.setdefault(keys[fd], []).append(fd)
    groups: list[list[int]] = []
    for members in alike.values():
        ordered = sorted(members, key=cmp_to_key(partial(_order, pid)))
        for fd in ordered:
            if groups and groups[-1][0] in members and not kcmp(pid, pid, _KCMP_FILE, groups[-1][0], fd):
                groups[-1].append(fd)
            else:
                groups.append([fd])
    return [sorted(found) for found in groups]


def _order(pid: int, a: int, b: int) -> int:
    """kcmp(2): 1 and 2 are less and greater in an order of the kernel's own."""
    return (0, -1, 1)[kcmp(pid, pid, _KCMP_FILE, a, b)]


