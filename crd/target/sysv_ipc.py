"""Objects of System V IPC that there are (sysvipc(7)), as /proc/sysvipc tells."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.errors import TargetError
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
    """Yield all shared memory of our IPC namespace; none where the kernel has none."""
    for key, number, mode, size, _, last_pid, attached, uid, gid, creator, *_ in _lines("shm"):
        yield Segment(int(number), int(key) & 0xFFFF_FFFF, int(mode, 8), int(size), int(last_pid), int(attached),
                      int(uid), int(gid), int(creator))


@dataclass(frozen=True, slots=True)
class Semaphores:
    """A set of semaphores; ``length``: how many."""

    id: int
    key: int
    mode: int
    length: int
    uid: int
    gid: int


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


def semaphores() -> Iterator[Semaphores]:
    """Yield all sets of semaphores of our IPC namespace; none where the kernel has none."""
    for key, number, mode, length, uid, gid, *_ in _lines("sem"):
        yield Semaphores(int(number), int(key) & 0xFFFF_FFFF, int(mode, 8), int(length), int(uid), int(gid))


def queues() -> Iterator[Queue]:
    """Yield all message queues of our IPC namespace; none where the kernel has none."""
    for key, number, mode, _, _, last_sender, last_receiver, uid, gid, *_ in _lines("msg"):
        yield Queue(int(number), int(key) & 0xFFFF_FFFF, int(mode, 8), int(last_sender), int(last_receiver), int(uid),
                    int(gid))


def _lines(name: str) -> Iterator[list[str]]:
    with suppress(TargetError):  # CONFIG_SYSVIPC
        for line in procfs.read("sysvipc", name).split("\n")[1:-1]:
            yield line.split()
