"""Pseudo-terminals: crd can save those that have both ends inside the target (pty(7))."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from crd.errors import Obstacle, TargetError
from crd.target import procfs
from crd.target.holders import link_holders
from crd.target.wording import process_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.target.nameless import Look
    from crd.target.procfs import FdInfo
    from crd.target.tree import Family

PTMX = os.makedev(5, 2)
_SLAVE_MAJORS = range(136, 144)
_REMEDY = "Start it with its input and output redirected, such as: setsid PROGRAM </dev/null >LOG 2>&1."


def is_terminal(file: os.stat_result) -> bool:
    """Whether it is an end of a pseudo-terminal."""
    return stat.S_ISCHR(file.st_mode) and (file.st_rdev == PTMX or os.major(file.st_rdev) in _SLAVE_MAJORS)


def slave_index(device: int) -> int:
    """Return the number of a slave by its device number."""
    return (os.major(device) - _SLAVE_MAJORS.start) * 256 + os.minor(device)


def slave_name(index: int) -> str:
    """Return the path of a slave."""
    return f"/dev/pts/{index}"


def _index(info: FdInfo) -> int:
    return int(info.extra.get("tty-index", "-1"))


def _masters(inside: Family) -> Iterator[int]:
    """Yield the numbers of the terminals whose masters some processes have."""
    for pid in inside:
        with suppress(TargetError):
            for fd in procfs.fd_numbers(pid):
                with suppress(TargetError):
                    if procfs.fd_stat(pid, fd).st_rdev == PTMX:
                        yield _index(procfs.fdinfo(pid, fd))


def obstacles(look: Look) -> Iterator[Obstacle]:
    """Find terminals with an end elsewhere, or that control another's session, in the order of descriptors."""
    found = [entry for entry in look.table if is_terminal(entry.file)]
    if not found:
        return
    masters = {entry.fd: _index(entry.info) for entry in found if entry.file.st_rdev == PTMX}
    inside = set(_masters(look.inside))
    holders = link_holders(look.inside, {slave_name(index) for index in masters.values()}) if masters else {}
    stat = procfs.stat(look.pid)
    for entry in found:
        index = masters.get(entry.fd, slave_index(entry.file.st_rdev))
        others = holders.get(slave_name(index))
        if index not in inside:
            yield Obstacle("fd.terminal", entry.name, "is a terminal, which crd cannot save yet", _REMEDY)
        elif others:
            yield Obstacle("fd.terminal", entry.name, f"is a terminal of {process_names(others)}, too", _REMEDY)
        elif stat.terminal == entry.file.st_rdev and stat.session not in look.inside:
            yield Obstacle("fd.terminal", entry.name, "controls a session that is led by another process", _REMEDY)
