"""The file table: which descriptor is open on what, described while the target is stopped."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crd.engine.userspace.fds import pipe, regular
from crd.engine.userspace.fds.description import Owner, dump_owner, group
from crd.errors import Obstacle, TargetUnsupported
from crd.image.profile import (
    LOCK_FLOCK,
    LOCK_POSIX,
    FileDescriptor,
    FileLock,
    Pipe,
    PipeData,
    PipeEnd,
    RegularFile,
)
from crd.native.syscall import pidfd_getfd
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.engine.userspace.objects import ObjectNumbers
    from crd.target.procfs import FdInfo

_LOCKS = {"POSIX": LOCK_POSIX, "FLOCK": LOCK_FLOCK}


@dataclass(slots=True)
class FileTable:
    """The records of a file table: objects first, then descriptors and locks."""

    objects: list[RegularFile | Pipe | PipeData | PipeEnd] = field(default_factory=list)
    descriptors: list[FileDescriptor] = field(default_factory=list)
    locks: list[FileLock] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Found:
    fd: int
    link: str
    stat: os.stat_result
    info: FdInfo


def dump(pid: int, objects: ObjectNumbers) -> FileTable:
    """Describe all open files of a stopped process.

    What is borrowed from it to look closer is closed again before this returns: a duplicate keeps pipes open and locks
    held.

    Raises:
        TargetUnsupported: a descriptor of a kind that cannot be restarted was opened since the preflight.
    """
    found = {fd: _Found(fd, procfs.read_link(pid, f"fd/{fd}"), procfs.fd_stat(pid, fd), procfs.fdinfo(pid, fd))
             for fd in procfs.fd_numbers(pid)}
    keys = {one.fd: (one.stat.st_dev, one.stat.st_ino, one.info.flags & ~os.O_CLOEXEC, one.info.position)
            for one in found.values()}
    table = FileTable()
    pipes: dict[int, list[tuple[int, int]]] = {}
    pidfd = os.pidfd_open(pid)
    try:
        for fds in sorted(group(pid, list(found), keys)):
            first = found[fds[0]]
            objref = objects.new()
            _describe(table, pipes, pidfd, first, objref)
            table.descriptors += [FileDescriptor(pid=pid, fd=fd, objref=objref,
                                                 close_on_exec=found[fd].info.close_on_exec) for fd in fds]
            table.locks += _locks(pid, first)
        for inode, ends in pipes.items():
            _dump_pipe(table, pidfd, objects.new(), inode, [(found[fd], objref) for fd, objref in ends])
    finally:
        os.close(pidfd)
    table.descriptors.sort(key=lambda record: record.fd)
    return table


def _describe(table: FileTable, pipes: dict[int, list[tuple[int, int]]], pidfd: int, one: _Found,
              objref: int) -> None:
    kind = stat.S_IFMT(one.stat.st_mode)
    if kind == stat.S_IFIFO:
        pipes.setdefault(one.stat.st_ino, []).append((one.fd, objref))
    elif kind in {stat.S_IFREG, stat.S_IFDIR, stat.S_IFCHR} and one.link.startswith("/"):
        table.objects.append(regular.dump(objref, one.link, one.stat, flags=one.info.flags,
                                          position=one.info.position, owner=_owner(pidfd, one.fd)))
    else:
        raise TargetUnsupported(reasons=[Obstacle("fd.unsupported", f"fd {one.fd} ({one.link})",
                                                  "crd cannot restart this kind of descriptor")])


def _owner(pidfd: int, fd: int) -> Owner:
    borrowed = pidfd_getfd(pidfd, fd)
    try:
        return dump_owner(borrowed)
    finally:
        os.close(borrowed)


def _dump_pipe(table: FileTable, pidfd: int, number: int, inode: int, ends: list[tuple[_Found, int]]) -> None:
    readers = [one for one, _ in ends if one.info.flags & os.O_ACCMODE == os.O_RDONLY]
    packets = any(one.info.flags & os.O_DIRECT for one, _ in ends if one not in readers)
    if readers:
        borrowed = pidfd_getfd(pidfd, readers[0].fd)
        try:
            record, data = pipe.dump_data(number, inode, borrowed, packets=packets)
        finally:
            os.close(borrowed)
    else:
        record, data = Pipe(objref=number, inode=inode, capacity_bytes=64 << 10, data_bytes=0), []
    table.objects += [record, *data]
    for one, objref in ends:
        owner = _owner(pidfd, one.fd)
        table.objects.append(PipeEnd(objref=objref, pipe=number, flags=one.info.flags & ~os.O_CLOEXEC,
                                     owner_type=owner.kind, owner_pid=owner.pid, owner_signal=owner.signal))


def _locks(pid: int, one: _Found) -> Iterator[FileLock]:
    for lock in one.info.locks:
        if lock.kind not in _LOCKS:
            raise TargetUnsupported(reasons=[Obstacle("fd.lock", f"fd {one.fd} ({one.link})",
                                                      f"holds a lock of kind {lock.kind}")])
        yield FileLock(pid=pid, kind=_LOCKS[lock.kind], exclusive=lock.exclusive, fd=one.fd, start=lock.start,
                       end=lock.end)
