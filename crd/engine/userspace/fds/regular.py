"""Regular files, directories and memory devices: opened again by their path."""

from __future__ import annotations

import fcntl
import os
import stat
from typing import TYPE_CHECKING

from crd.engine.userspace.clash import clash
from crd.engine.userspace.fds import rollback
from crd.engine.userspace.fds.description import NOBODY
from crd.engine.userspace.fds.kind import Kind, Making
from crd.errors import Obstacle, ResourceChanged, TargetUnsupported
from crd.image.objects import RegularFile
from crd.target.paths import Reach, name_left, reach

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crd.engine.api import Files
    from crd.engine.userspace.clash import Clash
    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.fds.rollback import Known
    from crd.engine.userspace.fds.table import FileTable
    from crd.engine.userspace.plan import Plan
    from crd.image.codec import Record
    from crd.image.owner import Owner

O_PATH = 0o10000000
_REOPENED = (os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK | os.O_DSYNC | os.O_SYNC | os.O_DIRECT
             | os.O_NOATIME | os.O_DIRECTORY | os.O_NOFOLLOW | O_PATH)
_SEEKABLE = (stat.S_IFREG, stat.S_IFDIR)
_KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFCHR)


class RegularFiles(Kind):
    """A REGULAR_FILE for each description; also what may only be mapped."""

    def recognises(self, one: Description) -> bool:
        """What has a name, and may be opened by it as well as by anything else; with O_PATH that is anything."""
        return one.link.startswith("/") and bool(one.flags & O_PATH or stat.S_IFMT(one.stat.st_mode) in _KINDS)

    def dump(self, found: Sequence[Description], table: FileTable) -> Iterator[Record]:
        """Note path, position and what a restart can hold the file against."""
        del table
        for one in found:
            yield dump(one.objref, _path(one), one.stat, flags=one.flags, position=one.info.position, owner=one.owner)

    def clashes(self, plan: Plan, files: Files) -> Iterator[Clash]:
        """Hold each file against what the image knew, but what a rollback puts back."""
        contents = rollback.known(plan)
        put_back = set()
        for identity, one in contents.items() if files == "rollback" else ():
            try:
                if one.judge() is rollback.Verdict.PUT_BACK:
                    put_back.add(identity)
            except ResourceChanged as error:
                put_back.add(identity)
                yield error
        for record in plan.of(RegularFile):
            if (record.device, record.inode) not in put_back:
                yield from clash(_check, record, contents.get((record.device, record.inode)), files)

    def prepare(self, making: Making) -> None:
        """Make the files that are to be put back; raises ResourceChanged."""
        if making.files == "rollback":
            rollback.prepare(making)

    def make(self, making: Making) -> None:
        """Open each file by its path, or the one that takes its place; raises ResourceChanged."""
        rollback.finish(making)
        for record in making.wanted(RegularFile):
            making.act_for(record.objref)
            making.add(record.objref, _restart(record, making))

def _path(one: Description) -> str:
    """Return the name it was opened by, or another that is left of it."""
    if reach(one.link, one.stat) is not Reach.UNLINKED:
        return one.link
    if name := name_left(one.link, one.stat.st_ino):
        return name
    raise TargetUnsupported(reasons=[Obstacle("fd.unlinked", one.name, Reach.UNLINKED.value)])


def dump(objref: int, path: str, found: os.stat_result, *, flags: int = 0, position: int = 0,
         owner: Owner = NOBODY) -> RegularFile:
    """Describe an open file description, or (flags 0) a file that is only mapped."""
    return RegularFile(
        objref=objref, path=path, mode=found.st_mode, device=found.st_dev, rdev=found.st_rdev, inode=found.st_ino,
        size=found.st_size, mtime_ns=found.st_mtime_ns, ctime_ns=found.st_ctime_ns,
        flags=flags, position=position, owner=owner, mapped=0, build_id=b"")


def _check(record: RegularFile, content: Known | None, files: Files) -> None:
    """Make sure that the path still shows what the image knew.

    The content must not have changed either if a private mapping relies on it, or the caller insists.

    Raises:
        ResourceChanged: the file is missing, another one, or has changed.
    """
    try:
        found = os.stat(record.path)
    except OSError as error:
        raise ResourceChanged(f"{record.path}: {error.strerror}", path=record.path,
                              hint="Put the file back, or choose another image.") from error
    by_content = content is not None and files == "fail"
    compare(record, found, must_be_same=bool(record.mapped) or (files == "fail" and not by_content))
    if content and by_content and (what := content.has_changed(found, record.path)):
        raise _changed(record, what)


def compare(record: RegularFile, found: os.stat_result, *, must_be_same: bool) -> None:
    """Hold a file that was found against the one the image knew; raises ResourceChanged."""
    if stat.S_IFMT(found.st_mode) != stat.S_IFMT(record.mode) or found.st_rdev != record.rdev:
        raise ResourceChanged(f"{record.path} is no longer the same kind of file", path=record.path)
    if must_be_same and stat.S_ISREG(record.mode):
        was, now = (record.size, record.mtime_ns), (found.st_size, found.st_mtime_ns)
        if was != now:
            what = "size" if was[0] != now[0] else "modification time"
            raise _changed(record, what)


def _changed(record: RegularFile, what: str) -> ResourceChanged:
    return ResourceChanged(f"{record.path} has changed since the image was taken ({what})", path=record.path,
                           hint="The program had this content mapped or open; put that version back.")


def reopened(flags: int) -> int:
    """Return the flags to open a file again with: it is there, also if O_TMPFILE made it without a name."""
    temporary = flags & os.O_TMPFILE == os.O_TMPFILE
    return flags & _REOPENED & ~(os.O_DIRECTORY if temporary else 0)


def _restart(record: RegularFile, making: Making) -> int:
    """Open the file as the image knew it, and return our descriptor.

    Raises:
        ResourceChanged: it cannot be opened, or is not what it was.
    """
    flags = reopened(record.flags)
    path_only = flags & O_PATH
    wait = 0 if path_only else os.O_NONBLOCK | os.O_NOCTTY  # whatever is there now: opening must not block
    if (content := making.contents.get(record.objref)) is not None:
        fd = os.open(f"/proc/self/fd/{content}", flags & ~os.O_NOFOLLOW | wait | os.O_CLOEXEC)
    else:
        fd = making.broker.open(record.path, flags | wait, (record.device, record.inode))
        compare(record, os.fstat(fd), must_be_same=False)
    if not path_only:
        if not flags & os.O_NONBLOCK:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        if stat.S_IFMT(record.mode) in _SEEKABLE:
            os.lseek(fd, record.position, os.SEEK_SET)
    return fd
