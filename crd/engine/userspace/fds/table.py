"""The file table: which descriptor is open on what, described while the target is stopped."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crd.engine.userspace.fds import lock
from crd.engine.userspace.fds.description import Description, Entry, group
from crd.engine.userspace.fds.kinds import KINDS
from crd.errors import Obstacle, TargetUnsupported
from crd.image.profile import LOCK_POSIX, EpollTarget, FileDescriptor, FileLock
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from crd.engine.userspace.fds.kind import Kind
    from crd.engine.userspace.fds.socket_queue import Message
    from crd.engine.userspace.fds.tcp_leaving import Leaving
    from crd.engine.userspace.fds.unnamed import Content
    from crd.engine.userspace.objects import ObjectNumbers
    from crd.image.codec import Record
    from crd.target.sock_diag import UnixSocketInfo


@dataclass(slots=True)
class FileTable:
    """Open files, and their records: objects first, then descriptors, what the task does with them, and locks.

    Attributes:
        objects: gives out objrefs.
        named: device and inode of the files that are shared memory with a name.
        descriptions: by objref, in the order of their descriptors.
        contents: of files that travel with the image, by device and inode, also of those that are only mapped.
        unix, queues: what is known of unix sockets, and what waits in them, by objref.
        leaving: where connections to other processes go if the target is to be killed; None: it runs on.
        late_records: of what is in flight, which may be any description.
    """

    objects: ObjectNumbers
    named: set[tuple[int, int]]
    leaving: Leaving | None = None
    descriptions: dict[int, Description] = field(default_factory=dict)
    contents: dict[tuple[int, int], Content] = field(default_factory=dict)
    unix: dict[int, UnixSocketInfo] = field(default_factory=dict)
    queues: dict[int, list[Message]] = field(default_factory=dict)
    late_records: list[Record] = field(default_factory=list)
    object_records: list[Record] = field(default_factory=list)
    descriptors: list[FileDescriptor] = field(default_factory=list)
    task_records: list[EpollTarget] = field(default_factory=list)
    locks: list[FileLock] = field(default_factory=list)


def dump(pids: Sequence[int], objects: ObjectNumbers, named: set[tuple[int, int]], leaving: Leaving | None,
         left_out: Entry | None = None) -> FileTable:
    """Describe all open files of stopped processes, what several of them have only once.

    What is borrowed from them to look closer is given back before this returns.

    Args:
        pids: of the processes, each with a file table of its own.
        objects: gives out objrefs.
        named: device and inode of the files that are shared memory with a name.
        leaving: where connections to other processes go if the target is to be killed.
        left_out: is not described.

    Raises:
        TargetUnsupported: something of a kind, or in a state, that cannot be restarted was opened since the preflight.
        TryLaterError: something is in a state that cannot be captured just now.
    """
    table = FileTable(objects, named, leaving)
    with ExitStack() as stack:
        entries: dict[Entry, int] = {}
        for pid in pids:
            pidfd = os.pidfd_open(pid)
            stack.callback(os.close, pidfd)
            entries |= {(pid, fd): pidfd for fd in procfs.fd_numbers(pid) if (pid, fd) != left_out}
        looked = {(one.pid, one.fd): one for one in Description.look(entries)}
        stack.callback(lambda: _give_back([*looked.values(), *table.descriptions.values()]))
        _add_descriptors(table, looked)
        for kind, found in _by_kind(table).items():
            if found:
                table.object_records += kind.dump(found, table)
        table.object_records += table.late_records
    return table


def _give_back(looked: Iterable[Description]) -> None:
    for one in looked:
        one.give_back()


def _add_descriptors(table: FileTable, looked: dict[Entry, Description]) -> None:
    keys = {entry: (one.stat.st_dev, one.stat.st_ino, one.flags, one.info.position) for entry, one in looked.items()}
    rank = {entry: index for index, entry in enumerate(looked)}
    for entries in sorted(group(keys), key=lambda same: rank[same[0]]):
        one = looked[entries[0]]
        one.objref = table.objects.new()
        table.descriptions[one.objref] = one
        table.descriptors += [FileDescriptor(pid=pid, fd=fd, objref=one.objref,
                                             close_on_exec=looked[pid, fd].info.close_on_exec) for pid, fd in entries]
        for pid in dict.fromkeys(pid for pid, _ in entries):
            fd = next(fd for owner, fd in entries if owner == pid)
            table.locks += [found for found in lock.dump(pid, looked[pid, fd])
                            if found.kind == LOCK_POSIX or pid == one.pid]  # all others are the description's
    table.descriptors.sort(key=lambda record: (record.pid, record.fd))


def _by_kind(table: FileTable) -> dict[Kind, list[Description]]:
    """Sort all descriptions by their kind, those too that are found in flight meanwhile."""
    found: dict[Kind, list[Description]] = {kind: [] for kind in KINDS}
    sorted_out = 0
    while new := list(table.descriptions.values())[sorted_out:]:
        sorted_out += len(new)
        for one in new:
            one.is_memory = (one.stat.st_dev, one.stat.st_ino) in table.named
        kinds = {one.objref: _kind(one) for one in new}
        for kind in KINDS:
            if some := [one for one in new if kinds[one.objref] is kind]:
                found[kind] += some
                kind.discover(some, table)
    return found


def _kind(one: Description) -> Kind:
    for kind in KINDS:
        if kind.recognises(one):
            return kind
    raise TargetUnsupported(reasons=[Obstacle("fd.unsupported", one.name, "crd cannot save this kind of descriptor")])
