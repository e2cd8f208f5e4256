"""Open file descriptions: whose they are, and which descriptors share one."""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crd.engine.userspace import outside
from crd.image.owner import Owner
from crd.native.syscall import kcmp, pidfd_getfd
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping

    from crd.target.procfs import FdInfo

F_SETSIG, F_GETSIG, F_SETOWN_EX, F_GETOWN_EX = 10, 11, 15, 16
_OWNER = struct.Struct("<ii")
_KCMP_FILE = 0
NOBODY = Owner(kind=0, pid=0, signal=0)


@dataclass(slots=True)
class Description:
    """An open file description of a stopped process, looked at through the first descriptor that has it.

    Attributes:
        pid, fd: whose descriptor, and its number.
        pidfd: of that process.
        link, stat, info: what /proc shows of it.
        objref: its number in the image.
        is_memory: its file is mapped as shared memory, and has a name.
    """

    pid: int
    fd: int
    pidfd: int
    link: str
    stat: os.stat_result
    info: FdInfo
    objref: int = 0
    is_memory: bool = False
    _borrowed: int = field(default=-1, repr=False)

    @classmethod
    def look(cls, entries: Mapping[Entry, int]) -> Iterator[Description]:
        """Look at descriptors, each given with the pidfd of its process; raises as ``outside.read``."""
        texts = outside.read([procfs.path(pid, f"fdinfo/{fd}") for pid, fd in entries],
                             [procfs.path(pid, f"fd/{fd}") for pid, fd in entries])
        for ((pid, fd), pidfd), info, link in zip(entries.items(), texts, texts[len(entries):], strict=False):
            yield cls(pid, fd, pidfd, link, procfs.fd_stat(pid, fd), procfs.parsed_fdinfo(pid, fd, info))

    @classmethod
    def lent(cls, fd: int) -> Description:
        """Look at a descriptor of ours, which is given back as what was borrowed is."""
        one, = cls.look({(os.getpid(), fd): -1})
        one._borrowed = fd
        return one

    @property
    def name(self) -> str:
        """What to call it in an obstacle."""
        return f"fd {self.fd} ({self.link})"

    @property
    def flags(self) -> int:
        """As F_GETFL returns them."""
        return self.info.flags & ~os.O_CLOEXEC

    @property
    def borrowed(self) -> int:
        """A duplicate of ours; it keeps pipes open and locks held, so it is given back before the target goes on."""
        if self._borrowed < 0:
            self._borrowed = pidfd_getfd(self.pidfd, self.fd)
        return self._borrowed

    def give_back(self) -> None:
        """Close what was borrowed."""
        if self._borrowed >= 0:
            os.close(self._borrowed)
            self._borrowed = -1

    @property
    def owner(self) -> Owner:
        """Who gets SIGIO for it; O_PATH descriptions have no owner."""
        try:
            kind, pid = _OWNER.unpack(fcntl.fcntl(self.borrowed, F_GETOWN_EX, _OWNER.pack(0, 0)))
            return Owner(kind=kind, pid=pid, signal=fcntl.fcntl(self.borrowed, F_GETSIG))
        except OSError:
            return NOBODY


def restart_owner(fd: int, owner: Owner) -> None:
    """Set the owner again, which is there by now."""
    if owner.signal:
        fcntl.fcntl(fd, F_SETSIG, owner.signal)
    if owner.pid:
        fcntl.fcntl(fd, F_SETOWN_EX, _OWNER.pack(owner.kind, owner.pid))


Entry = tuple[int, int]
"""A descriptor of a process: pid and number."""


def group(keys: Mapping[Entry, Hashable]) -> list[list[Entry]]:
    """Group descriptors by the open file description they share.

    Args:
        keys: what equal descriptions have in common at least (device, inode, flags, position), by descriptor.
    """
    alike: dict[Hashable, list[Entry]] = {}
    for entry, key in keys.items():
        alike.setdefault(key, []).append(entry)
    rank = {entry: index for index, entry in enumerate(keys)}
    return [sorted(same, key=rank.__getitem__) for members in alike.values() for same in _same(members)]


def _same(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Part descriptors by the kernel's own order of their descriptions: most are equal to the first."""
    first, *others = entries
    parts: tuple[list[Entry], list[Entry], list[Entry]] = ([first], [], [])
    for entry in others:
        parts[_order(first, entry)].append(entry)
    yield parts[0]
    for part in parts[1:]:
        if part:
            yield from _same(part)


def _order(a: Entry, b: Entry) -> int:
    """Compare by kcmp(2): 0 = the same, 1 and 2 are less and greater in an order of the kernel's own."""
    return kcmp(a[0], b[0], _KCMP_FILE, a[1], b[1])
