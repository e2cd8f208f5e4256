"""What is in the regular files of a target: a digest of each, and all of those that are to be saved.

Nothing in the stop waits for a disk.  A digest is made when the target runs again, of what provably has not been
written since.  A file that is to be saved is read before the stop; in it, it is read once more only if it has been
written meanwhile, and then the kernel has it in memory.  ``rollback`` is the other half.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from crd.engine.userspace.fds.digest import digest, digest_start, is_in_memory, is_storage
from crd.engine.userspace.fds.kind import TryLaterError
from crd.engine.userspace.fds.regular import O_PATH
from crd.engine.userspace.mem import layout
from crd.engine.userspace.mem.shared import Copied, copy_content
from crd.errors import Obstacle, TargetError
from crd.image.objects import (
    DIGEST_BYTES,
    FILE_APPENDED,
    FILE_MAPPED,
    FILE_READ,
    FILE_WRITTEN,
    FileContent,
    InotifyWatch,
    RegularFile,
)
from crd.image.profile import VMA_SHARED_FILE
from crd.target import procfs
from crd.target.paths import is_memory_with_a_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.fds.table import FileTable
    from crd.engine.userspace.mem.layout import MappedObjects
    from crd.target.procfs import MapEntry

_TICK_NS = 20_000_000
"""Two writes closer to each other than a tick of the coarse clock may leave the same times (kernels before 6.13)."""
_IN_LOOKING = 0x1 | 0x10 | 0x20
"""IN_ACCESS, IN_CLOSE_NOWRITE, IN_OPEN."""

Identity = tuple[int, int]
"""Device and inode."""


@dataclass(slots=True)
class _Ready:
    """A file that was read before the stop: our descriptor, its state then, and what was in it."""

    fd: int
    stamp: tuple[int, ...]
    copied: Copied


@dataclass(slots=True)
class _File:
    """A file in the stop.

    Attributes:
        path, stat: of it.
        objref: of a description; 0 if it is only mapped.
        area: device and inode as maps shows them, if it is mapped shared and writable: its times tell nothing then.
        use: FILE_*.
        leased: opening it would break a lease of the target.
        copied: what was in it, if it is saved.
    """

    path: str
    stat: os.stat_result
    objref: int = 0
    area: Identity | None = None
    use: int = FILE_READ
    leased: bool = False
    copied: Copied | None = None


@dataclass(frozen=True, slots=True)
class SavedContent:
    """A record, and what was in the file if it was saved."""

    record: FileContent
    copied: Copied | None


class Contents:
    """What is in the files of a target: to be looked at before the stop, settled in it and finished after it."""

    def __init__(self, save_bytes: int) -> None:
        """Save files that the target can write to if they are not larger than this; 0: none."""
        self._save_bytes = save_bytes
        self._ready: dict[Identity, _Ready | None] = {}
        self._files: dict[Identity, _File] = {}
        self._watched: set[Identity] = set()
        self._stopped_ns = 0

    def look(self, pids: Iterable[int]) -> None:
        """Read what is to be saved of running processes."""
        for pid in pids:
            with suppress(TargetError):
                for path in _writable(pid):
                    self._read(path)

    def _read(self, path: str) -> None:
        with suppress(OSError):
            found = os.stat(path)
            identity = found.st_dev, found.st_ino
            if identity in self._ready or not stat.S_ISREG(found.st_mode) or found.st_size > self._save_bytes:
                return
            self._ready[identity] = None
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            if is_storage(fd):
                begun_ns = time.time_ns()
                before = os.fstat(fd)
                copied = copy_content(fd)
                provable = _stamp(before) == _stamp(os.fstat(fd)) and before.st_ctime_ns < begun_ns - _TICK_NS
                self._ready[identity] = _Ready(fd, _stamp(before) if provable else (), copied)
            else:
                os.close(fd)

    def settle(self, table: FileTable, areas: Mapping[int, list[MapEntry]]) -> None:
        """Find the files of the stopped target, and have a copy of each that is to be saved.

        Args:
            table: its descriptions.
            areas: what its processes map shared, by pid.

        Raises:
            TryLaterError: a file cannot be copied without waiting.
        """
        self._stopped_ns = time.time_ns()
        regular = {record.objref for record in table.object_records if isinstance(record, RegularFile)}
        for one in table.descriptions.values():
            is_file = one.objref in regular and stat.S_ISREG(one.stat.st_mode)
            if is_file and one.stat.st_nlink and not one.flags & O_PATH:
                self._add(one)
        for pid, entries in areas.items():
            for path, entry in _written_through(pid, entries):
                found = os.stat(path)
                file = self._files.setdefault((found.st_dev, found.st_ino), _File(entry.path, found))
                file.area, file.use = (entry.device, entry.inode), FILE_MAPPED
        self._watched = {(record.device, record.inode) for record in table.object_records
                         if isinstance(record, InotifyWatch) and record.mask & _IN_LOOKING}
        for identity, file in self._files.items():
            if self._save_bytes and file.use != FILE_READ and not file.leased:
                file.copied = self._copied(identity, file)
        self.close()

    def _add(self, one: Description) -> None:
        file = self._files.setdefault((one.stat.st_dev, one.stat.st_ino), _File(one.link, one.stat, one.objref))
        file.leased |= any(lock.kind == "LEASE" for lock in one.info.locks)
        if one.flags & os.O_ACCMODE != os.O_RDONLY:
            file.use = max(file.use, FILE_APPENDED if one.flags & os.O_APPEND else FILE_WRITTEN)

    def _copied(self, identity: Identity, file: _File) -> Copied | None:
        if file.stat.st_size > self._save_bytes:
            return None
        try:
            ready = self._ready[identity]
        except KeyError:
            raise TryLaterError(Obstacle("fd.content", file.path, "was opened just now, and is to be saved",
                                         "Try again, or do not save the content of files.")) from None
        if ready is None:
            return None
        if ready.stamp == _stamp(file.stat) and not file.area:
            return ready.copied
        return _copied_without_waiting(ready.fd, file.path)

    def finish(self, mapped: MappedObjects) -> list[SavedContent]:
        """Return what is known of the files; the target may run again.

        Args:
            mapped: the files that it maps, and where further objects get their numbers.
        """
        return [self._finished(file, mapped) for file in self._files.values()]

    def _finished(self, file: _File, mapped: MappedObjects) -> SavedContent:
        size = file.copied.bytes if file.copied else file.stat.st_size
        start = 0 if file.copied else digest_start(size)
        known = _digest_of_copy(file.copied) if file.copied else self._digest(file, start, size)
        objref = file.objref or int(mapped.files[file.area or (0, 0)].objref)
        record = FileContent(objref=mapped.numbers.new(), file=objref, use=file.use, size=size, uid=file.stat.st_uid,
                             gid=file.stat.st_gid, saved=file.copied is not None, digest=known, digest_start=start)
        return SavedContent(record, file.copied)

    def _digest(self, file: _File, start: int, size: int) -> bytes:
        """Return the digest of a file as it was in the stop; empty if that is not known any more."""
        with suppress(OSError):
            if file.leased or file.area or self._is_watched(file):
                return b""
            with _opened(file) as fd:
                found = digest(fd, start, size) if is_storage(fd) else b""
                unwritten = (_stamp(os.fstat(fd)) == _stamp(file.stat)
                             and file.stat.st_ctime_ns < self._stopped_ns - _TICK_NS)
                return found if unwritten or file.use == FILE_APPENDED else b""
        return b""

    def _is_watched(self, file: _File) -> bool:
        """Whether the target would be told of our looking at it (inotify(7))."""
        if not self._watched:
            return False
        around = os.stat(Path(file.path).parent)
        return bool(self._watched & {(file.stat.st_dev, file.stat.st_ino), (around.st_dev, around.st_ino)})

    def close(self) -> None:
        """Close what was read before the stop."""
        for ready in self._ready.values():
            if ready:
                os.close(ready.fd)
        self._ready.clear()


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _writable(pid: int) -> Iterator[str]:
    """Yield paths that lead to what a process can write to, but what it has a lease on."""
    for fd in procfs.fd_numbers(pid):
        with suppress(TargetError):
            info = procfs.fdinfo(pid, fd)
            if (info.flags & os.O_ACCMODE != os.O_RDONLY and not info.flags & O_PATH
                    and not any(lock.kind == "LEASE" for lock in info.locks)):
                yield f"/proc/{pid}/fd/{fd}"
    for path, _ in _written_through(pid, procfs.maps(pid)):
        yield path


def _written_through(pid: int, entries: Iterable[MapEntry]) -> Iterator[tuple[str, MapEntry]]:
    """Yield areas through which a process can write to a file that has a name, each with a path to the file."""
    for entry in entries:
        if (layout.kind(entry) == VMA_SHARED_FILE and entry.permissions[1] == "w" and not entry.deleted
                and not is_memory_with_a_name(entry.path)):
            where = f"/proc/{pid}/map_files/{entry.start:x}-{entry.end:x}"
            yield (entry.path if os.geteuid() else where), entry


@contextmanager
def _opened(file: _File) -> Iterator[int]:
    """Open a file for reading; raises FileNotFoundError if it has not its name any more."""
    place = os.open(file.path, O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(place)
        if (found.st_dev, found.st_ino) != (file.stat.st_dev, file.stat.st_ino):
            raise FileNotFoundError
        fd = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(place)
    try:
        yield fd
    finally:
        os.close(fd)


def _copied_without_waiting(fd: int, path: str) -> Copied:
    """Copy what the kernel has in memory of a file.

    Raises:
        TryLaterError: it has not all of it.
    """
    try:
        return copy_content(fd, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP and is_in_memory(fd):
            return copy_content(fd)
        if error.errno not in {errno.EAGAIN, errno.EOPNOTSUPP}:
            raise
        raise TryLaterError(Obstacle(
            "fd.content", path, "is to be saved, is being written, and cannot be read without waiting for its disk",
            "Try again, or do not save the content of files.")) from error


def _digest_of_copy(copied: Copied) -> bytes:
    found = blake2b(digest_size=DIGEST_BYTES)
    at = end = 0
    for start, length in copied.runs:
        found.update(bytes(start - end))
        end = min(start + length, copied.bytes)
        found.update(copied.content[at:at + end - start])
        at += length
    found.update(bytes(copied.bytes - end))
    return found.digest()
