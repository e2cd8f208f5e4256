"""Files that are put back to what they held when the image was taken, and what they held since then kept beside them.

A file that has grown is cut off; any other is replaced by one with the content that the image has, in one step
(RENAME_EXCHANGE of renameat2(2)), so that whenever we die its name leads to the old file or to the new one, each whole.
All is made ready while the tasks are, and done when nothing can fail any more but this.  ``content`` is the other half.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from crd.engine.userspace.fds.digest import digest
from crd.errors import NativeError, ResourceChanged, RestartError
from crd.image.objects import FILE_APPENDED, FILE_MAPPED, FILE_READ, FileContent, RegularFile
from crd.native.syscall import syscall

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crd.engine.userspace.broker import Broker
    from crd.engine.userspace.fds.kind import Making
    from crd.engine.userspace.plan import Plan

_RENAMEAT2, _RENAME_NOREPLACE, _RENAME_EXCHANGE = 316, 1, 2
_CHUNK_BYTES = 1 << 20
O_PATH = 0o10000000
_HINT = "Put that version back, restart with --files keep, or choose another image."


class Verdict(StrEnum):
    """What a rollback does to a file."""

    LEAVE = "leave"
    CUT = "cut"
    PUT_BACK = "put back"


@dataclass(frozen=True, slots=True)
class Known:
    """A file, and what the image knows of its content."""

    record: RegularFile
    content: FileContent

    @property
    def path(self) -> str:
        """Of the file."""
        return str(self.record.path)

    def has_changed(self, found: os.stat_result, path: str) -> str:
        """Say what of the file is another than the image knew; empty if nothing is.

        Its content decides where the image has a digest of all of it, else size and time of modification.

        Args:
            found: its state.
            path: by which it can be read.
        """
        record, content = self.record, self.content
        if found.st_size != content.size:
            return "size"
        if content.digest and not content.digest_start:
            return "" if self._begins_alike(path) else "content"
        if content.use == FILE_MAPPED:
            return "maybe: nobody can tell of a mapped one"
        return "modification time" if found.st_mtime_ns != record.mtime_ns else ""

    def _begins_alike(self, path: str) -> bool:
        """Whether the part of the file that the image has a digest of is what it was; nothing but a file is opened."""
        try:
            place = os.open(path, O_PATH | os.O_CLOEXEC)
            try:
                if not stat.S_ISREG(os.fstat(place).st_mode):
                    return False
                fd = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            finally:
                os.close(place)
        except OSError as error:
            raise ResourceChanged(f"{self.path}: {error.strerror}", path=self.path, hint=_HINT) from error
        try:
            return digest(fd, self.content.digest_start, self.content.size) == self.content.digest
        finally:
            os.close(fd)

    def judge(self) -> Verdict:
        """Say how the file becomes what it was.

        Raises:
            ResourceChanged: it cannot.
        """
        try:
            found = os.lstat(self.path)
        except OSError as error:
            if self.content.saved and isinstance(error, FileNotFoundError):
                return Verdict.PUT_BACK
            raise ResourceChanged(f"{self.path}: {error.strerror}", path=self.path, hint=_HINT) from error
        if not stat.S_ISREG(found.st_mode):
            raise ResourceChanged(f"{self.path} is no longer a regular file", path=self.path, hint=_HINT)
        if self.content.use == FILE_READ or not (what := self.has_changed(found, self.path)):
            return Verdict.LEAVE
        provable = self.content.digest and (not self.content.digest_start or self.content.use == FILE_APPENDED)
        if found.st_size > self.content.size and provable and self._begins_alike(self.path):
            return Verdict.CUT
        if self.content.saved:
            return Verdict.PUT_BACK
        raise ResourceChanged(f"{self.path} has changed since the image was taken ({what}), and the image has no copy "
                              "of it", path=self.path, hint=_HINT)


def known(plan: Plan) -> dict[tuple[int, int], Known]:
    """Return the files of an image of whose content it knows something, by device and inode."""
    found = (Known(plan.objects[content.file], content) for content in plan.of(FileContent))
    return {(one.record.device, one.record.inode): one for one in found}


def prepare(making: Making) -> None:
    """Make ready what is to be cut off or put back; the content of the latter comes with the memory.

    Raises:
        ResourceChanged: a file cannot become what it was, or its user may not do that.
    """
    for identity, one in known(making.plan).items():
        verdict = one.judge()
        if verdict is Verdict.LEAVE:
            continue
        records = [record for record in making.plan.of(RegularFile) if (record.device, record.inode) == identity]
        opened = (record.objref for record in records if record.objref in making.plan.shared.opened)
        making.act_for(next(opened, one.record.objref))
        try:
            if verdict is Verdict.CUT:
                _prepare_cut(one, making)
            else:
                _prepare_exchange(one, records, making)
        except OSError as error:
            raise ResourceChanged(f"putting {one.path} back to what it was: {error.strerror}", path=one.path,
                                  hint="Its user must be able to make files in its directory, and there must be room; "
                                       "or restart with --files keep.") from error


class _Beside:
    """A new file beside another one, which is gone again unless the restart succeeds.

    Attributes:
        directory: our descriptor of the directory.
        name: of the file that was there.
        aside: of the new one.
        fd: of the new one, to read and write.
    """

    def __init__(self, path: str, broker: Broker) -> None:
        """Make it, with the rights that we have at the moment; raises OSError."""
        self._broker = broker
        self.name = Path(path).name
        when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.aside = f"{self.name}.newer-{when}-{os.getpid()}"
        self.directory = broker.hold(os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self.fd = broker.hold(os.open(self.aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                                      0o600, dir_fd=self.directory))
        broker.undo(partial(os.unlink, self.aside, dir_fd=self.directory))

    def rename(self, how: int) -> None:
        """Rename the new file to the name of the other, or exchange the two; raises OSError."""
        try:
            syscall(_RENAMEAT2, self.directory, os.fsencode(self.aside) + b"\0", self.directory,
                    os.fsencode(self.name) + b"\0", how)
        except NativeError as error:
            raise OSError(error.errno, os.strerror(error.errno)) from error


def _prepare_cut(one: Known, making: Making) -> None:
    """Copy what is to be cut off, and cut it off at last."""
    size, broker = one.content.size, making.broker
    fd = broker.open(one.path, os.O_RDWR | os.O_NOFOLLOW, (one.record.device, one.record.inode))
    with broker.as_the_task():
        beside = _Beside(one.path, broker)
        os.fchmod(beside.fd, stat.S_IMODE(os.fstat(fd).st_mode))
    at = _copy(fd, size, beside.fd, 0)
    os.fsync(beside.fd)

    def cut() -> None:
        _copy(fd, size + at, beside.fd, at)  # what has come meanwhile
        os.fsync(beside.fd)
        broker.undo(lambda: _give_back(beside.fd, fd, size))
        os.ftruncate(fd, size)
        with suppress(PermissionError):
            os.utime(fd, ns=(one.record.mtime_ns, one.record.mtime_ns))
        os.fsync(fd)

    broker.at_last(one.path, cut)
    making.notes.append(f"{one.path} is cut off to its {size} bytes; what it had beyond is in {beside.aside}")


def _give_back(aside: int, fd: int, size: int) -> None:
    _copy(aside, 0, fd, size)


def _copy(source: int, start: int, target: int, at: int) -> int:
    """Copy all from an offset on; return how much that was."""
    copied = 0
    while part := os.pread(source, _CHUNK_BYTES, start + copied):
        if os.pwrite(target, part, at + copied) != len(part):
            raise RestartError("there is no room for what a file has beyond its size in the image")
        copied += len(part)
    return copied


def _prepare_exchange(one: Known, records: Iterable[RegularFile], making: Making) -> None:
    """Make the file that will have the saved content, and put it in the place of the other at last."""
    content, broker = one.content, making.broker
    with broker.as_the_task():
        beside = _Beside(one.path, broker)
        names = _look_like(one, beside)
    os.ftruncate(beside.fd, content.size)
    for objref in (content.objref, *(record.objref for record in records)):
        making.contents[objref] = beside.fd
    leader = broker.leader

    def exchange() -> None:
        broker.act_for(leader)
        how = _RENAME_EXCHANGE if names else _RENAME_NOREPLACE
        with broker.as_the_task():
            beside.rename(how)
        if names:
            broker.undo(partial(beside.rename, how))
        else:
            broker.undo(partial(os.unlink, beside.name, dir_fd=beside.directory))
        os.fsync(beside.directory)

    broker.at_last(one.path, exchange)
    kept = f"what it held since is in {beside.aside}" if names else "it was missing"
    if names > 1:
        kept += ", and under its other names"
    making.notes.append(f"{one.path} has the content that it had in the image; {kept}")


def _look_like(one: Known, beside: _Beside) -> int:
    """Give the new file owner, mode and attributes of the one that is there; return how many names that has, or 0."""
    try:
        old = os.open(beside.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                      dir_fd=beside.directory)
    except FileNotFoundError:
        uid, gid, mode, old = one.content.uid, one.content.gid, stat.S_IMODE(one.record.mode), -1
        names = 0
    else:
        found = os.fstat(old)
        uid, gid, mode, names = found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode), found.st_nlink
    try:
        if (uid, gid) != (os.fstat(beside.fd).st_uid, os.fstat(beside.fd).st_gid):
            os.fchown(beside.fd, uid, gid)
        os.fchmod(beside.fd, mode)
        for name in os.listxattr(old) if old >= 0 else ():
            with suppress(OSError):
                os.setxattr(beside.fd, name, os.getxattr(old, name))
    finally:
        if old >= 0:
            os.close(old)
    return names


def finish(making: Making) -> None:
    """Make the content of what is put back durable; it is there by now."""
    for content in making.plan.of(FileContent):
        if (fd := making.contents.get(content.objref)) is not None:
            when = making.plan.objects[content.file].mtime_ns
            os.utime(fd, ns=(when, when))
            os.fsync(fd)
