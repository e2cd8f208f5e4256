"""What an epoll set watches, and through which descriptor each of that can be had (epoll(7), proc_pid_fdinfo(5))."""

from __future__ import annotations

import re
import struct
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.errors import NativeError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from crd.target.procfs import FdInfo
    from crd.target.task_obstacles import Kcmp

_KCMP_EPOLL_TFD = 7
_SLOT = struct.Struct("<III")  # struct kcmp_epoll_slot
_LINE = re.compile(r"tfd: *(\d+) events: *([0-9a-f]+) data: *([0-9a-f]+) +pos:-?\d+ ino:([0-9a-f]+) .*")

WHY_NOT = ("watches a descriptor that was closed here and is open in another process, or in none",
           "Have the program remove it from the set (EPOLL_CTL_DEL) before it closes it.")


@dataclass(frozen=True, slots=True)
class Watched:
    """An entry: the number it was added under, what for, the file's inode; ``nth`` of those with this number."""

    fd: int
    events: int
    data: int
    inode: int
    nth: int


def watched(info: FdInfo) -> list[Watched]:
    """Return the entries of an epoll set."""
    seen: Counter[int] = Counter()
    found = []
    for line in info.entries:
        if match := _LINE.fullmatch(line):
            fd = int(match[1])
            found.append(Watched(fd, int(match[2], 16), int(match[3], 16), int(match[4], 16), seen[fd]))
            seen[fd] += 1
    return found


def holder(pid: int, epoll_fd: int, one: Watched, files: Mapping[int, os.stat_result], kcmp: Kcmp) -> int | None:
    """Return a descriptor of the file that an entry watches, at best the one it was added under; None: there is none.

    Args:
        pid: of the process.
        epoll_fd: its descriptor of the set.
        one: the entry.
        files: fstat of all its descriptors.
        kcmp: kcmp(2).
    """
    slot = _SLOT.pack(epoll_fd, one.fd, one.nth)
    for fd in (one.fd, *files):
        if fd in files and files[fd].st_ino == one.inode:
            try:
                if kcmp(pid, pid, _KCMP_EPOLL_TFD, fd, slot) == 0:
                    return fd
            except NativeError:  # it has changed meanwhile
                return None
    return None
