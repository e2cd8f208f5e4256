"""Pseudo-terminals: those with a master in the target must be all in it; of others only slaves are (pty(7))."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from crd.errors import Obstacle, TargetError
from crd.target import procfs
from crd.target.holders import opened_file_holders
from crd.target.paths import Reach
from crd.target.wording import process_names

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from crd.target.nameless import Look
    from crd.target.procfs import FdInfo
    from crd.target.tree import Family

PTMX, TTY = os.makedev(5, 2), os.makedev(5, 0)
_SLAVE_MAJORS = range(136, 144)
_REMEDY = "Start it with its input and output redirected, such as: setsid PROGRAM </dev/null >LOG 2>&1."


def is_terminal(file: os.stat_result) -> bool:
    """Whether it is an end of a pseudo-terminal, or whatever terminal controls a session (/dev/tty)."""
    return stat.S_ISCHR(file.st_mode) and (file.st_rdev in {PTMX, TTY} or is_slave(file.st_rdev))


def is_slave(device: int) -> bool:
    """Whether a device number is that of a slave."""
    return os.major(device) in _SLAVE_MAJORS


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


def _holders(inside: Family, indices: Collection[int]) -> dict[int, list[int]]:
    """Return the processes other than those inside that have one of these slaves open; containers have their own."""
    slaves: dict[int, tuple[int, int]] = {}
    for index in indices:
        with suppress(OSError):
            found = os.stat(slave_name(index))
            slaves[index] = found.st_dev, found.st_ino
    holders = opened_file_holders(inside, set(map(slave_name, slaves)), slaves.values()) if slaves else {}
    return {index: others for index, slave in slaves.items() if (others := holders.get(slave))}


def obstacles(look: Look) -> Iterator[Obstacle]:
    """Find terminals that nobody can be given again, in the order of descriptors.

    These are: with a master here and an end elsewhere, or in control of another's session; without any master; and what
    is no pseudo-terminal.
    """
    found = [entry for entry in look.table if is_terminal(entry.file)]
    if not found:
        return
    masters = {entry.fd: _index(entry.info) for entry in found if entry.file.st_rdev == PTMX}
    inside = set(_masters(look.inside))
    outside = _holders(look.inside, masters.values())
    stat = procfs.stat(look.pid)
    for entry in found:
        device = stat.terminal if entry.file.st_rdev == TTY else entry.file.st_rdev
        index = masters.get(entry.fd, slave_index(device))
        others = outside.get(index)
        if device != PTMX and not is_slave(device):
            yield Obstacle("fd.terminal", entry.name, "is a terminal, which crd cannot save yet", _REMEDY)
        elif index not in inside:
            if entry.file.st_rdev != TTY and entry.how is not Reach.SAME:
                yield Obstacle("fd.terminal", entry.name, "is a terminal whose other end is gone", _REMEDY)
        elif others:
            yield Obstacle("fd.terminal", entry.name, f"is a terminal of {process_names(others)}, too", _REMEDY)
        elif stat.terminal == entry.file.st_rdev and stat.session not in look.inside:
            yield Obstacle("fd.terminal", entry.name, "controls a session that is led by another process", _REMEDY)
