"""Who else holds what a process holds: found by one look at every process that crd may look at."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from typing import TYPE_CHECKING

from crd.errors import TargetError
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_PIPE = re.compile(r"pipe:\[(\d+)\]")


def pipe_inode(link: str) -> int | None:
    """Return the number of a pipe from the link text of its descriptor, or None: file names begin with a slash."""
    found = _PIPE.fullmatch(link)
    return int(found[1]) if found else None


def outside_holders(inside: Collection[int]) -> dict[int, list[int]]:
    """Return the other processes that have a pipe of the processes inside open, ascending, by pipe."""
    pipes = set().union(*map(_pipes_of, inside))
    return pipe_holders(inside, pipes) if pipes else {}


def pipe_holders(inside: Collection[int], inodes: Collection[int]) -> dict[int, list[int]]:
    """Return the processes other than those inside that have one of these pipes open, ascending, by pipe."""
    holders: dict[int, list[int]] = defaultdict(list)
    for other in _others(inside):
        for inode in _pipes_of(other) & set(inodes):
            holders[inode].append(other)
    return holders


def _pipes_of(pid: int) -> set[int]:
    directory = procfs.PROC / str(pid) / "fd"
    found = set()
    try:
        for name in os.listdir(directory):
            found.add(pipe_inode(os.readlink(directory / name)))
    except OSError:  # ended, or not ours to look at
        pass
    return {inode for inode in found if inode is not None}


def memory_holders(inside: Collection[int], files: Collection[tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
    """Return the processes other than those inside that map one of these (device, inode) shared, ascending."""
    holders: dict[tuple[int, int], list[int]] = defaultdict(list)
    for other in _others(inside):
        try:
            mapped = {(entry.device, entry.inode) for entry in procfs.maps(other) if entry.shared}
        except TargetError:
            continue
        for key in mapped & set(files):
            holders[key].append(other)
    return holders


def _others(inside: Collection[int]) -> Iterator[int]:
    return (other for other in sorted(procfs.pids()) if other not in inside)
