"""The file table: which descriptor is open on what, described while the target is stopped."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crd.engine.userspace.fds import lock
from crd.engine.userspace.fds.description import Description, group
from crd.engine.userspace.fds.kinds import KINDS
from crd.errors import Obstacle, TargetUnsupported
from crd.image.profile import FileDescriptor, FileLock
from crd.target import procfs

if TYPE_CHECKING:

    from crd.engine.userspace.fds.kind import Kind
    from crd.engine.userspace.fds.socket_queue import Message
    from crd.engine.userspace.fds.unnamed import Content
    from crd.engine.userspace.objects import ObjectNumbers
    from crd.image.codec import Record
    from crd.target.sock_diag import UnixSocketInfo


@dataclass(slots=True)
class FileTable:
    """Open files, and their records: objects first, then descriptors, what the task does with them, and locks.

    Attributes:
        objects: gives out objrefs.
        descriptions: by objref, in the order of their descriptors.
        contents: of files that no name leads to, by device and inode, also of those that are only mapped.
        mapped: objref of such a file by the start of the area that maps it.
        unix, queues: what is known of unix sockets, and what waits in them, by objref.
        late_records: of what is in flight, which may be any description.
    """

    objects: ObjectNumbers
    descriptions: dict[int, Description] = field(default_factory=dict)
    contents: dict[tuple[int, int], Content] = field(default_factory=dict)
    mapped: dict[int, int] = field(default_factory=dict)
    unix: dict[int, UnixSocketInfo] = field(default_factory=dict)
    queues: dict[int, list[Message]] = field(default_factory=dict)
    late_records: list[Record] = field(default_factory=list)
    object_records: list[Record] = field(default_factory=list)
    descriptors: list[FileDescriptor] = field(default_factory=list)
    task_records: list[Record] = field(default_factory=list)
    locks: list[FileLock] = field(default_factory=list)


def dump(pid: int, objects: ObjectNumbers) -> FileTable:
    """Describe all open files of a stopped process.

    What is borrowed from it to look closer is given back before this returns.

    Raises:
        TargetUnsupported: something of a kind, or in a state, that cannot be restarted was opened since the preflight.
        TryLaterError: something is in a state that cannot be captured just now.
    """
    table = FileTable(objects)
    pidfd = os.pidfd_open(pid)
    try:
        _add_descriptors(table, pid, pidfd)
        for kind, found in _by_kind(table).items():
            if found:
                table.object_records += kind.dump(found, table)
        table.object_records += table.late_records
    finally:
        for one in table.descriptions.values():
            one.give_back()
        os.close(pidfd)
    return table


def _add_descriptors(table: FileTable, pid: int, pidfd: int) -> None:
    looked = {fd: Description.look(pid, fd, pidfd) for fd in procfs.fd_numbers(pid)}
    keys = {fd: (one.stat.st_dev, one.stat.st_ino, one.flags, one.info.position) for fd, one in looked.items()}
    for fds in sorted(group(pid, keys)):
        one = looked[fds[0]]
        one.objref = table.objects.new()
        table.descriptions[one.objref] = one
        table.descriptors += [FileDescriptor(pid=pid, fd=fd, objref=one.objref,
                                             close_on_exec=looked[fd].info.close_on_exec) for fd in fds]
        table.locks += lock.dump(pid, one)
    table.descriptors.sort(key=lambda record: record.fd)


def _by_kind(table: FileTable) -> dict[Kind, list[Description]]:
    """Sort all descriptions by their kind, those too that are found in flight meanwhile."""
    found: dict[Kind, list[Description]] = {kind: [] for kind in KINDS}
    sorted_out = 0
    while new := list(table.descriptions.values())[sorted_out:]:
        sorted_out += len(new)
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
