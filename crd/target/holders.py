"""Who else holds what a process holds: found by one look at every process that crd may look at."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.errors import NativeError, TargetError
from crd.target import procfs
from crd.target.paths import is_shared_memory

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from crd.target.task_obstacles import Kcmp
    from crd.target.tree import Family

_KCMP_FILE = 0
_PIPE = re.compile(r"pipe:\[(\d+)\]")
_SHARED_LINE = re.compile(r"^[0-9a-f]+-[0-9a-f]+ [r-][w-][x-]s .*\n", re.MULTILINE)


def pipe_inode(link: str) -> int | None:
    """Return the number of a pipe from the link text of its descriptor, or None: file names begin with a slash."""
    found = _PIPE.fullmatch(link)
    return int(found[1]) if found else None


@dataclass(frozen=True, slots=True)
class Holders:
    """Who outside of a target holds what it holds, ascending: pipes by number, shared memory by device and inode."""

    pipes: dict[int, list[int]]
    memories: dict[tuple[int, int], list[int]]

    @classmethod
    def outside(cls, inside: Family) -> Holders:
        """Look at every process once."""
        pipes = set().union(*map(_pipes_of, inside))
        memories = set().union(*map(_memories_of, inside))
        return cls(pipe_holders(inside, pipes) if pipes else {}, memory_holders(inside, memories) if memories else {})


def _memories_of(pid: int) -> set[tuple[int, int]]:
    try:
        lines = _SHARED_LINE.findall(procfs.read(pid, "maps"))  # to parse all of every process takes 0.1 s
        entries = procfs.parsed_maps(pid, "".join(lines))
        return {(entry.device, entry.inode) for entry in entries if is_shared_memory(entry)}
    except TargetError:
        return set()


def pipe_holders(inside: Family, inodes: Collection[int]) -> dict[int, list[int]]:
    """Return the processes other than those inside that have one of these pipes open, ascending, by pipe.

    We do not count: what we have of a pipe is the end that the image goes to.
    """
    holders: dict[int, list[int]] = defaultdict(list)
    for other in _others(inside):
        if other == os.getpid():
            continue
        for inode in _pipes_of(other) & set(inodes):
            if inside.lacks(other):
                holders[inode].append(other)
    return holders


def _pipes_of(pid: int) -> set[int]:
    return {inode for link in _links(pid).values() if (inode := pipe_inode(link)) is not None}


def _links(pid: int) -> dict[int, str]:
    """Return the link of each descriptor; of none if the process has ended, or is not ours to look at."""
    directory = procfs.PROC / str(pid) / "fd"
    links: dict[int, str] = {}
    with suppress(OSError):
        for name in os.listdir(directory):
            with suppress(OSError):  # closed meanwhile
                links[int(name)] = os.readlink(directory / name)
    return links


def description_holders(pid: int, links: Mapping[int, str], inside: Family,
                        kcmp: Kcmp) -> dict[int, list[int]]:
    """Return the processes other than those inside that have an open file description of ``pid``, by descriptor.

    Args:
        pid: whose they are.
        links: of its descriptors.
        inside: processes that may share them.
        kcmp: kcmp(2).
    """
    holders: dict[int, list[int]] = defaultdict(list)
    fds: dict[str, list[int]] = defaultdict(list)
    for fd, link in links.items():
        fds[link].append(fd)
    for other in _others(inside):
        for theirs, link in _links(other).items():
            for fd in fds.get(link, ()):
                with suppress(NativeError):  # gone, or not ours to look at
                    if kcmp(pid, other, _KCMP_FILE, fd, theirs) == 0 and inside.lacks(other):
                        holders[fd].append(other)
    return holders


def links_inside(inside: Family) -> set[str]:
    """Return the links of all descriptors of some processes."""
    return {link for pid in inside for link in _links(pid).values()}


def link_holders(inside: Family, links: Collection[str]) -> dict[str, list[int]]:
    """Return the processes other than those inside whose descriptors show one of these links, ascending."""
    holders: dict[str, list[int]] = defaultdict(list)
    for other in _others(inside):
        for link in {*_links(other).values()} & set(links):
            if inside.lacks(other):
                holders[link].append(other)
    return holders


def file_holders(inside: Family, links: Collection[str], files: Collection[tuple[int, int]],
                 ) -> dict[tuple[int, int], list[int]]:
    """Return the processes other than those inside that have one of these (device, inode) open or map it.

    Args: as ``opened_file_holders``.
    """
    holders = memory_holders(inside, files)
    for identity, others in opened_file_holders(inside, links, files).items():
        holders[identity] = sorted({*holders.get(identity, ()), *others})
    return holders


def opened_file_holders(inside: Family, links: Collection[str], files: Collection[tuple[int, int]],
                        ) -> dict[tuple[int, int], list[int]]:
    """Return the processes other than those inside that have one of these (device, inode) open, ascending.

    Args:
        inside: processes that may.
        links: what /proc shows of them, the same for all processes; of those of another mount namespace also of others.
        files: the files.
    """
    holders: dict[tuple[int, int], list[int]] = defaultdict(list)
    for other in _others(inside):
        for fd, link in _links(other).items():
            if link in links:
                with suppress(TargetError):
                    found = procfs.fd_stat(other, fd)
                    identity = found.st_dev, found.st_ino
                    if identity in files and other not in holders.get(identity, ()) and inside.lacks(other):
                        holders[identity].append(other)
    return holders


def memory_holders(inside: Family, files: Collection[tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
    """Return the processes other than those inside that map one of these (device, inode) shared, ascending."""
    holders: dict[tuple[int, int], list[int]] = defaultdict(list)
    shown = {key: f" {os.major(key[0]):02x}:{os.minor(key[0]):02x} {key[1]} ".encode() for key in files}
    for other in _others(inside):
        for key in _mapped_shared(other, shown):
            if inside.lacks(other):
                holders[key].append(other)
    return holders


def _mapped_shared(pid: int, shown: Mapping[tuple[int, int], bytes]) -> set[tuple[int, int]]:
    """Return which of some files a process maps shared; ``shown`` is what a line of its maps has of each."""
    try:
        text = procfs.read_bytes(pid, "maps")
        if not any(words in text for words in shown.values()):
            return set()  # as nearly all; parsing takes fifty times as long
        return {(entry.device, entry.inode) for entry in procfs.parsed_maps(pid, os.fsdecode(text))
                if entry.shared and (entry.device, entry.inode) in shown}
    except TargetError:
        return set()


def _others(inside: Family) -> Iterator[int]:
    return (other for other in sorted(procfs.pids()) if other not in inside)
