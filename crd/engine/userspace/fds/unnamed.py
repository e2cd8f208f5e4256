"""Files whose content travels with the image: those that no name leads to, and shared memory that has one.

The former are memory files (memfd_create(2)), files and directories that were deleted while in use, and O_TMPFILE; the
latter is what shm_open(3) and sem_open(3) make.  It is always made anew, and gets its name when all else is done: what
has the name until then may be another's by now, and is never written to.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from crd.engine.userspace.fds.kind import Kind, Making
from crd.engine.userspace.fds.regular import reopened
from crd.engine.userspace.mem.huge import MFD_FLAGS
from crd.engine.userspace.mem.shared import Copied, copy_content
from crd.errors import Obstacle, ResourceChanged, RestartError, TargetUnsupported
from crd.image.objects import (
    UNNAMED_DIRECTORY,
    UNNAMED_FILE,
    UNNAMED_HUGE,
    UNNAMED_MEMORY,
    UNNAMED_SHARED,
    UNNAMED_TEMPORARY,
    UnnamedFile,
    UnnamedOpen,
)
from crd.image.profile import HUGE_PAGE_BYTES
from crd.target.paths import DELETED, Reach, name_left, reach
from crd.target.unnamed import is_unnamed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from crd.engine.api import Files
    from crd.engine.userspace.clash import Clash
    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.fds.table import FileTable
    from crd.engine.userspace.plan import Plan
    from crd.image.codec import Record
    from crd.target.procfs import MapEntry

_MEMFD = "/memfd:"
_KERNELS_OWN = ("/SYSV", "/[aio]", "/secretmem")
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_MFD_EXEC = 0x10
_O_PATH = 0o10000000
_WITHOUT_CONTENT = Copied(0, [], memoryview(b""))


@dataclass(frozen=True, slots=True)
class Content:
    """A file and what it held when the target was stopped."""

    record: UnnamedFile
    copied: Copied


class UnnamedFiles(Kind):
    """An UNNAMED_FILE for each file, an UNNAMED_OPEN for each description; the content is among the memory."""

    def recognises(self, one: Description) -> bool:
        """By the number of its names: the text of the link may deceive."""
        return one.is_memory or is_unnamed(one.stat)

    def dump(self, found: Sequence[Description], table: FileTable) -> Iterator[Record]:
        """Copy the content of each file once."""
        for one in found:
            objref = _add(table, f"/proc/{one.pid}/fd/{one.fd}", one.link, one.stat)
            table.object_records.append(UnnamedOpen(objref=one.objref, file=objref, flags=one.flags, owner=one.owner,
                                                    position=one.info.position))
        yield from ()

    def clashes(self, plan: Plan, files: Files) -> Iterator[Clash]:  # noqa: ARG002
        """Tell which file has no directory to be made in."""
        for record in plan.of(UnnamedFile):
            if record.kind != UNNAMED_MEMORY and not Path(record.path).parent.is_dir():
                yield ResourceChanged(f"there is no directory for the deleted file {record.path}", path=record.path,
                                      hint="Make the directory again.")

    def prepare(self, making: Making) -> None:
        """Make the files; their content comes with the memory, and some of them are mapped there."""
        for record in making.plan.of(UnnamedFile):
            making.contents[record.objref] = _make(record, making)

    def make(self, making: Making) -> None:
        """Open the files as they were, and seal them: all their mappings are made."""
        for record in making.wanted(UnnamedOpen):
            flags = reopened(record.flags) & ~os.O_NOFOLLOW
            fd = os.open(f"/proc/self/fd/{making.contents[record.file]}", flags | os.O_CLOEXEC)
            making.add(record.objref, fd)
            if not flags & _O_PATH:
                os.lseek(fd, record.position, os.SEEK_SET)
        for file in making.plan.of(UnnamedFile):
            if file.kind != UNNAMED_DIRECTORY:
                os.utime(making.contents[file.objref], ns=(file.mtime_ns, file.mtime_ns))
            if file.seals:
                fcntl.fcntl(making.contents[file.objref], _F_ADD_SEALS, file.seals)

    def arm(self, making: Making) -> None:
        """Have shared memory get its name at last, unless that is another's by now."""
        for record in making.plan.of(UnnamedFile):
            if record.kind == UNNAMED_SHARED:
                making.act_for(record.objref)
                _name_at_last(record, making)


def dump_mapped(table: FileTable, pid: int, entry: MapEntry) -> int:
    """Copy the content of a file that is mapped, if it travels with the image; return its objref, or else 0."""
    path = f"/proc/{pid}/map_files/{entry.start:x}-{entry.end:x}"
    found = os.stat(path)
    has_name = found.st_nlink and (found.st_dev, found.st_ino) not in table.named
    if has_name or not stat.S_ISREG(found.st_mode) or entry.path.startswith(_KERNELS_OWN):
        return 0
    return _add(table, path, os.readlink(path), found)


def dump_directory(table: FileTable, path: str) -> int:
    """Describe the directory of a link of /proc if it was deleted; return its objref, or 0 if it was not."""
    found = os.stat(path)
    return 0 if found.st_nlink else _add(table, path, os.readlink(path), found)


def _add(table: FileTable, path: str, link: str, found: os.stat_result) -> int:
    """Describe a file, unless it has been already, and copy it; return its objref."""
    identity = found.st_dev, found.st_ino
    if identity not in table.contents:
        content = _dump(table.objects.new(), path, link, found)
        table.contents[identity] = content
        table.object_records.append(content.record)
    return table.contents[identity].record.objref


def _dump(objref: int, path: str, link: str, found: os.stat_result) -> Content:
    kind, name = _kind_and_name(link, found)
    seals, copied = 0, _WITHOUT_CONTENT
    if kind != UNNAMED_DIRECTORY:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                copied = copy_content(fd)
                if kind == UNNAMED_MEMORY:
                    seals = fcntl.fcntl(fd, _F_GET_SEALS)
                    kind = UNNAMED_HUGE if os.fstatvfs(fd).f_bsize == HUGE_PAGE_BYTES else UNNAMED_MEMORY
            finally:
                os.close(fd)
        except OSError as error:
            raise TargetUnsupported(reasons=[Obstacle("fd.deleted", f"file {link}",
                                                      f"cannot be read: {error.strerror}")]) from error
    record = UnnamedFile(objref=objref, kind=kind, path=name, mode=stat.S_IMODE(found.st_mode), uid=found.st_uid,
                         gid=found.st_gid, size=copied.bytes, mtime_ns=found.st_mtime_ns, seals=seals)
    return Content(record, copied)


def _kind_and_name(link: str, found: os.stat_result) -> tuple[int, str]:
    """Return UNNAMED_*, and the name that it had or, as shared memory, is to have."""
    name = link.removesuffix(DELETED)
    if found.st_nlink:
        left = link if reach(link, found) is not Reach.UNLINKED else name_left(link, found.st_ino)
        if not left:
            raise TargetUnsupported(reasons=[Obstacle("fd.unlinked", f"shared memory {link}", Reach.UNLINKED.value)])
        return UNNAMED_SHARED, left
    if stat.S_ISDIR(found.st_mode):
        return UNNAMED_DIRECTORY, name
    if link.startswith(_MEMFD):
        return UNNAMED_MEMORY, name.removeprefix(_MEMFD)
    temporary = Path(name).name == f"#{found.st_ino}"  # what d_tmpfile of fs/dcache.c calls it
    return UNNAMED_TEMPORARY if temporary else UNNAMED_FILE, name


def _make(record: UnnamedFile, making: Making) -> int:
    """Make an empty file of the right size, with the rights of the task: no image gives its user a file of root's.

    Raises:
        ResourceChanged: its directory is missing, or its user may not write there.
        RestartError: there is no room.
    """
    broker = making.broker
    making.act_for(record.objref)
    try:
        fd = broker.hold(_create(record, making))
        with broker.as_the_task():
            with suppress(PermissionError):
                os.fchown(fd, record.uid, record.gid)
            os.fchmod(fd, record.mode)
    except OSError as error:
        raise ResourceChanged(f"making the deleted file {record.path} again: {error.strerror}",
                              path=record.path) from error
    try:
        if record.kind != UNNAMED_DIRECTORY:
            os.ftruncate(fd, record.size)
    except OSError as error:
        raise RestartError(f"{record.size} bytes for the deleted file {record.path}: {error.strerror}",
                           errno=error.errno) from error
    return fd


def _name_at_last(record: UnnamedFile, making: Making) -> None:
    if _is_in_use(record.path):
        making.notes.append(f"the shared memory {record.path} stays without a name: another process uses what has it")
    else:
        fd = making.contents[record.objref]
        making.broker.afterwards(making.broker.with_these_rights(lambda: _give_name(fd, record.path)))


def _is_in_use(path: str) -> bool:
    """Whether a file is open or mapped, in whatever namespace: then nobody gets a lease for writing (fcntl(2))."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:  # a link, or not ours
        return True
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _give_name(fd: int, path: str) -> None:
    """Put a file of ours in the place of the one that has this name, if one has."""
    passing = _free_name(path)
    os.link(f"/proc/self/fd/{fd}", passing, src_dir_fd=fd)  # a directory of no account: it has os.link follow the link
    if passing != path:
        Path(passing).rename(path)


def _create(record: UnnamedFile, making: Making) -> int:
    try:
        with making.broker.as_the_task():
            return _MAKERS[record.kind](record.path)
    except PermissionError:
        if record.kind not in {UNNAMED_FILE, UNNAMED_TEMPORARY}:
            raise
    fd = _make_temporary(record.path)  # by us, and without a name for anybody, so that it is harmless wherever it is
    os.fchown(fd, *making.broker.file_owner)
    making.notes.append(f"the deleted file {record.path} shows another name: its user may make none there")
    return fd


def _make_memory(name: str, more: int = 0) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | more
    try:
        return os.memfd_create(name, flags | _MFD_EXEC)
    except OSError:  # EINVAL: a kernel before 6.3
        return os.memfd_create(name, flags)


def _make_file(path: str) -> int:
    name = _free_name(path)
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    Path(name).unlink()
    return fd


def _make_temporary(path: str) -> int:
    return os.open(Path(path).parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)


def _make_directory(path: str) -> int:
    name = _free_name(path)
    Path(name).mkdir(0o700)
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    finally:
        Path(name).rmdir()


def _free_name(path: str) -> str:
    """Return the path, or one beside it if there is something by now."""
    return f"{path}.crd-{os.getpid()}" if os.path.lexists(path) else path


_MAKERS: dict[int, Callable[[str], int]] = {
    UNNAMED_MEMORY: _make_memory, UNNAMED_FILE: _make_file, UNNAMED_TEMPORARY: _make_temporary,
    UNNAMED_DIRECTORY: _make_directory, UNNAMED_SHARED: _make_temporary,
    UNNAMED_HUGE: partial(_make_memory, more=MFD_FLAGS)}
