"""Pseudo-terminals: crd can save those that have both ends inside the process (pty(7))."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from crd.errors import Obstacle
from crd.target import procfs
from crd.target.holders import link_holders
from crd.target.wording import process_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.target.nameless import Look

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


def obstacles(look: Look) -> Iterator[Obstacle]:
    """Find terminals with an end elsewhere, and one that controls the session, in the order of their descriptors."""
    found = [entry for entry in look.table if is_terminal(entry.file)]
    if not found:
        return
    masters = {entry.fd: int(entry.info.extra.get("tty-index", "-1")) for entry in found if entry.file.st_rdev == PTMX}
    holders = link_holders(look.pid, {slave_name(index) for index in masters.values()}) if masters else {}
    terminal = procfs.stat(look.pid).terminal
    for entry in found:
        index = masters.get(entry.fd, slave_index(entry.file.st_rdev))
        others = holders.get(slave_name(index))
        if index not in masters.values():
            yield Obstacle("fd.terminal", entry.name, "is a terminal, which crd cannot save yet", _REMEDY)
        elif others:
            yield Obstacle("fd.terminal", entry.name, f"is a terminal of {process_names(others)}, too", _REMEDY)
        elif terminal == entry.file.st_rdev:
            yield Obstacle("fd.terminal", entry.name, "controls the session of the program", _REMEDY)
