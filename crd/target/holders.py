"""Who else holds what a process holds: found by one look at every process that crd may look at."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING

from crd.errors import NativeError, TargetError
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from crd.target.task_obstacles import Kcmp

_KCMP_FILE = 0
_PIPE = re.compile(r"pipe:\[(\d+)\]")


def pipe_inode(link: str) -> int | None:
    """Return the number of a pipe from the link text of its descriptor, or None: file names begin with a slash."""
    found = _PIPE.fullmatch(link)
    return int(found[1]) if found else None


def pipe_holders(pid: int, inodes: Collection[int]) -> dict[int, list[int]]:
    """Return the processes other than ``pid`` that have one of these pipes open, ascending, by pipe."""
    holders: dict[int, list[int]] = defaultdict(list)
    for other in _others(pid):
        for inode in _pipes_of(other) & set(inodes):
            holders[inode].append(other)
    return holders


def _pipes_of(pid: int) -> set[int]:
    return {inode for link in _links(pid).values() if (inode := pipe_inode(link)) is not None}


def _links(pid: int) -> dict[int, str]:
    """Return the link of each descriptor; of none if the process has ended, or is not ours to look at."""
    directory = procfs.PROC / str(pid) / "fd"
    try:
        return {int(name): os.readlink(directory / name) for name in os.listdir(directory)}
    except OSError:
        return {}


def description_holders(pid: int, links: Mapping[int, str], kcmp: Kcmp) -> dict[int, list[int]]:
    """Return the processes other than ``pid`` that have one of its open file descriptions, ascending, by descriptor.

    Args:
        pid: whose they are.
        links: of its descriptors.
        kcmp: kcmp(2).
    """
    holders: dict[int, list[int]] = defaultdict(list)
    fds: dict[str, list[int]] = defaultdict(list)
    for fd, link in links.items():
        fds[link].append(fd)
    for other in _others(pid):
        for theirs, link in _links(other).items():
            for fd in fds.get(link, ()):
                with suppress(NativeError):  # gone, or not ours to look at
                    if kcmp(pid, other, _KCMP_FILE, fd, theirs) == 0:
                        holders[fd].append(other)
    return holders


def link_holders(pid: int, links: Collection[str]) -> dict[str, list[int]]:
    """Return the processes other than ``pid`` whose descriptors show one of these links, ascending."""
    holders: dict[str, list[int]] = defaultdict(list)
    for other in _others(pid):
        for link in {*_links(other).values()} & set(links):
            holders[link].append(other)
    return holders


def file_holders(pid: int, links: Collection[str], files: Collection[tuple[int, int]],
                 ) -> dict[tuple[int, int], list[int]]:
    """Return the processes other than ``pid`` that have one of these (device, inode) open or map it, ascending.

    Args:
        pid: whose they are.
        links: what /proc shows of them, the same for all processes.
        files: the files.
    """
    holders = memory_holders(pid, files)
    for other in _others(pid):
        for fd, link in _links(other).items():
            if link in links:
                with suppress(TargetError):
                    found = procfs.fd_stat(other, fd)
                    identity = found.st_dev, found.st_ino
                    if identity in files and other not in holders.get(identity, []):
                        holders.setdefault(identity, []).append(other)
    return holders


def memory_holders(pid: int, files: Collection[tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
    """Return the processes other than ``pid`` that map one of these (device, inode) shared, ascending."""
    holders: dict[tuple[int, int], list[int]] = defaultdict(list)
    for other in _others(pid):
        try:
            mapped = {(entry.device, entry.inode) for entry in procfs.maps(other) if entry.shared}
        except TargetError:
            continue
        for key in mapped & set(files):
            holders[key].append(other)
    return holders


def _others(pid: int) -> Iterator[int]:
    return (other for other in sorted(procfs.pids()) if other != pid)
