"""Obstacles in what a process has open."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from crd.errors import Obstacle
from crd.target import inet_obstacles, message_queues, nameless, procfs, terminals, unix_obstacles, unnamed
from crd.target.descriptors import open_descriptors
from crd.target.holders import pipe_inode
from crd.target.paths import Reach, name_left, reach
from crd.target.sock_diag import socket_inode
from crd.target.wording import process_names
from crd.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from crd.target.descriptors import Open
    from crd.target.task_obstacles import Kcmp
    from crd.target.tree import Family

MEMORY_DEVICES = {os.makedev(1, minor) for minor in (3, 5, 7, 8, 9)}
"""null, zero, full, random, urandom (Documentation/admin-guide/devices.txt): any open of them is as good as another."""

_TERMINAL_MAJORS = {4, 5}  # ttyN and ttySN; tty and console

_ANONYMOUS_INODES = {
    "anon_inode:[io_uring]": ("fd.io-uring", "an io_uring"),
    "anon_inode:[userfaultfd]": ("fd.userfaultfd", "a userfaultfd"),
    "anon_inode:[fanotify]": ("fd.fanotify", "a fanotify group"),
}
_REMEDIES = {
    "fd.terminal": "Start it with its input and output redirected, such as: setsid PROGRAM </dev/null >LOG 2>&1.",
    "fd.device": "Close the device before the checkpoint.",
}
_NOT_YET = "Close it before the checkpoint; this version of crd cannot save it."


def descriptors(pid: int, inside: Family, holders: Mapping[int, list[int]],
                kcmp: Kcmp | None, left_out: tuple[int, int] | None = None) -> Iterator[Obstacle]:
    """Find open files that crd cannot save, in the order of their numbers, then locks, then what others hold too.

    Args:
        pid: of the process.
        inside: all processes of the target.
        holders: processes outside of the target that have a pipe open, by pipe.
        kcmp: kcmp(2), to find descriptions of nameless objects in other processes; None: these go unseen.
        left_out: a pid and a descriptor of it that is not looked at.
    """
    table = [entry for entry in open_descriptors(pid) if (pid, entry.fd) != left_out]
    look = nameless.Look(pid, inside, table, kcmp)
    unix = unix_obstacles.unix_sockets(look.table)
    network = inet_obstacles.network_sockets(look)
    for entry in table:
        if entry.fd not in unix and entry.fd not in network and not terminals.is_terminal(entry.file):
            yield from _kind(entry, look)
    for entry in table:
        yield from _locks(entry)
    yield from _pipes(table, holders)
    yield from nameless.shared(look)
    yield from unnamed.shared(look)
    yield from terminals.obstacles(look)
    yield from unix_obstacles.obstacles(look, unix)
    yield from inet_obstacles.obstacles(look, network)


def _kind(entry: Open, look: nameless.Look) -> Iterator[Obstacle]:
    mode = entry.file.st_mode
    if pipe_inode(entry.link) is not None or (stat.S_ISCHR(mode) and entry.file.st_rdev in MEMORY_DEVICES):
        return
    if (of_queue := message_queues.obstacles(entry, look)) is not None:
        yield from of_queue
        return
    if rule := nameless.RULES.get(nameless.kind(entry.link)):
        yield from rule(entry, look)
        return
    if socket_inode(entry.link):
        protocol = inet_obstacles.protocol(look.pid, entry.fd)
        code, noun = "fd.socket", f"a socket of {protocol}" if protocol else "a socket"
    elif found := _nameless(entry.link):
        code, noun = found
    elif stat.S_ISREG(mode) or stat.S_ISDIR(mode) or entry.info.flags & os.O_PATH:
        yield from _regular(entry, look)
        return
    elif stat.S_ISFIFO(mode):
        yield from _fifo(entry)
        return
    else:
        code, noun = _special_file(entry.file)
    yield Obstacle(code, entry.name, f"is {noun}, which crd cannot save yet", _REMEDIES.get(code, _NOT_YET))


def _nameless(link: str) -> tuple[str, str] | None:
    return None if link.startswith("/") else _ANONYMOUS_INODES.get(link, ("fd.special", "a special kernel object"))


def _special_file(file: os.stat_result) -> tuple[str, str]:
    if stat.S_ISSOCK(file.st_mode):
        return "fd.socket", "a socket"
    if stat.S_ISCHR(file.st_mode) and os.major(file.st_rdev) in _TERMINAL_MAJORS:
        return "fd.terminal", "a terminal"
    return "fd.device", "a device"


def _regular(entry: Open, look: nameless.Look) -> Iterator[Obstacle]:
    how = entry.how
    if unnamed.is_unnamed(entry.file):
        yield from unnamed.obstacles(entry, look)
    elif how is not Reach.SAME and not (how is Reach.UNLINKED and name_left(entry.link, entry.file.st_ino)):
        yield Obstacle(f"fd.{how.name.lower()}", entry.name, f"{how.value}, and crd cannot save its content yet",
                       "Have the program open the file again (log rotation: copytruncate, or a reload).")


def _fifo(entry: Open) -> Iterator[Obstacle]:
    """Others may have a named pipe open too: they will find the restarted one by its name."""
    how = entry.how
    if how is not Reach.SAME and entry.file.st_nlink:
        yield Obstacle(f"fd.{how.name.lower()}", entry.name, how.value, "Have the program open the pipe again.")


def _locks(entry: Open) -> Iterator[Obstacle]:
    kinds = {lock.kind for lock in entry.info.locks}
    if "DELEG" in kinds:
        yield Obstacle("fd.lease", entry.name, "holds a delegation, which crd cannot save",
                       "Give it up before the checkpoint.")
    elif "LEASE" in kinds and unnamed.is_unnamed(entry.file):
        yield Obstacle("fd.lease", entry.name, "holds a lease on a deleted file, which crd would break by reading it",
                       "Give the lease up before the checkpoint.")


def _pipes(table: list[Open], holders: Mapping[int, list[int]]) -> Iterator[Obstacle]:
    for entry in table:
        inode = pipe_inode(entry.link)
        if inode is not None and inode in holders:
            yield Obstacle("fd.pipe", entry.name,
                           f"is a pipe that is open elsewhere too, in {process_names(holders[inode])}",
                           "Start it with its input and output in files, or without the other program.")


def working_directory(pid: int) -> Iterator[Obstacle]:
    """Find a working or root directory that a restart could not go to."""
    for name, noun in (("cwd", "working directory"), ("root", "root directory")):
        link = procfs.read_link(pid, name)
        found = procfs.link_stat(pid, name)
        how = reach(link, found)
        if how is not Reach.SAME and not (name == "cwd" and unnamed.is_unnamed(found)):
            yield Obstacle(f"task.{name}", f"{noun} {printable(link)}", how.value,
                           "Start the program in a directory that stays.")
