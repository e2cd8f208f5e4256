"""The open descriptors of a running process, as /proc shows them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.errors import TargetGone
from crd.target import procfs
from crd.target.paths import Reach, reach
from crd.text import printable

if TYPE_CHECKING:
    import os

    from crd.target.procfs import FdInfo

_LOOKS_MAX = 50


@dataclass(frozen=True, slots=True)
class Open:
    """A descriptor: its number, link, fstat and fdinfo, and where its name led to when these were read."""

    fd: int
    link: str
    file: os.stat_result
    info: FdInfo
    how: Reach

    @property
    def name(self) -> str:
        """What to call it in an obstacle."""
        return f"fd {self.fd} ({printable(self.link)})"


def open_descriptors(pid: int) -> list[Open]:
    """Return the descriptors, ascending, without those that are closed meanwhile."""
    table = []
    for fd in procfs.fd_numbers(pid):
        with suppress(TargetGone):
            table.append(_look(pid, fd))
    return table


def _look(pid: int, fd: int) -> Open:
    """Look at a descriptor, again if name and file do not fit: a shell puts file after file under one number."""
    for _ in range(_LOOKS_MAX):
        link, file = procfs.read_link(pid, f"fd/{fd}"), procfs.fd_stat(pid, fd)
        how = reach(link, file) if link.startswith("/") else Reach.SAME
        entry = Open(fd, link, file, procfs.fdinfo(pid, fd), how)
        if how is Reach.SAME:
            break
    return entry
