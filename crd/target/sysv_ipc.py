"""Objects of System V IPC that there are (sysvipc(7)), as /proc/sysvipc tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator

REMOVED, LOCKED = 0o1000, 0o2000
"""SHM_DEST, SHM_LOCKED: in the mode of a segment."""
PERMISSIONS = 0o777


@dataclass(frozen=True, slots=True)
class Segment:
    """Shared memory.

    Attributes:
        id, key: its number, and what it is found by (0: nothing).
        mode: permissions, REMOVED, LOCKED.
        bytes: as it was asked for.
        last_pid: who attached or detached it last.
        attached: how often it is.
        uid, gid, creator: owner, group, and uid of who made it.
    """

    id: int
    key: int
    mode: int
    bytes: int
    last_pid: int
    attached: int
    uid: int
    gid: int
    creator: int


def segments() -> Iterator[Segment]:
    """Yield all shared memory of our IPC namespace; raises TargetError where the kernel has none."""
    for line in procfs.read("sysvipc", "shm").split("\n")[1:-1]:
        key, number, mode, size, _, last_pid, attached, uid, gid, creator, *_ = line.split()
        yield Segment(int(number), int(key) & 0xFFFF_FFFF, int(mode, 8), int(size), int(last_pid), int(attached),
                      int(uid), int(gid), int(creator))
