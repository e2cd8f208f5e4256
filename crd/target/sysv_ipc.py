"""Objects of System V IPC that there are (sysvipc(7)), as /proc/sysvipc tells."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.errors import TargetError
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Container, Iterator
    from typing import Self

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
    """Yield all shared memory of our IPC namespace; none where the kernel has none."""
    for key, number, mode, size, _, last_pid, attached, uid, gid, creator, *_ in map(str.split, _lines("shm")):
        yield Segment(int(number), int(key) & 0xFFFF_FFFF, int(mode, 8), int(size), int(last_pid), int(attached),
                      int(uid), int(gid), int(creator))


@dataclass(frozen=True, slots=True)
class Semaphores:
    """A set of semaphores.

    Attributes:
        length: how many.
        changed_at: when one was last used, or set, or the set was made or given other rights; in whole seconds.
    """

    id: int
    key: int
    mode: int
    length: int
    uid: int
    gid: int
    changed_at: int

    @classmethod
    def parsed(cls, line: str) -> Self:
        """Parse a line of ``semaphore_lines``."""
        key, number, mode, length, uid, gid, _, _, used_at, set_at, *_ = line.split()
        return cls(int(number), int(key) & 0xFFFF_FFFF, int(mode, 8), int(length), int(uid), int(gid),
                   max(int(used_at), int(set_at)))


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue of messages; ``last_sender`` and ``last_receiver`` are the pids of who used it last, 0 for nobody."""

    id: int
    key: int
    mode: int
    last_sender: int
    last_receiver: int
    uid: int
    gid: int


def semaphore_lines() -> list[str]:
    """Return what is told of each set of semaphores of our IPC namespace; nothing where the kernel has none."""
    return _lines("sem")


def semaphores() -> Iterator[Semaphores]:
    """Yield those sets."""
    return map(Semaphores.parsed, semaphore_lines())


def queues(pids: Container[int] | None = None) -> Iterator[Queue]:
    """Yield all message queues of our IPC namespace, or those that some used last; none where the kernel has none."""
    for line in _lines("msg"):
        key, number, mode, _, _, sender, receiver, uid, gid, *_ = line.split()
        if pids is None or int(sender) in pids or int(receiver) in pids:
            yield Queue(int(number), int(key) & 0xFFFF_FFFF, int(mode, 8), int(sender), int(receiver), int(uid),
                        int(gid))


def _lines(name: str) -> list[str]:
    with suppress(TargetError):  # CONFIG_SYSVIPC
        return procfs.read("sysvipc", name).split("\n")[1:-1]
    return []
