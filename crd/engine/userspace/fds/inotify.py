"""Watch lists: inotify(7).

The kernel tells which inode is watched, not by which name; the name is asked of its file system (open_by_handle_at(2)).
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import termios
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from crd.engine.userspace.fds.kind import Kind, Making, TryLaterError
from crd.errors import NativeError, Obstacle, ResourceChanged, RestartUnsupported, TargetUnsupported
from crd.image.objects import Inotify, InotifyWatch
from crd.native.syscall import NR, syscall
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crd.engine.userspace.broker import Broker
    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.fds.table import FileTable
    from crd.image.codec import Record

_LINE = re.compile(r"inotify wd:([0-9a-f]+) ino:[0-9a-f]+ sdev:([0-9a-f]+) mask:([0-9a-f]+) ignored_mask:[0-9a-f]+"
                   r"(?: fhandle-bytes:[0-9a-f]+ fhandle-type:([0-9a-f]+) f_handle:([0-9a-f]*))?")
_HANDLE = struct.Struct("<Ii")  # struct file_handle
_IN_CLOEXEC = os.O_CLOEXEC
_IOC_SETNEXTWD = 0x40044900
_O_PATH = 0o10000000
_UNFOUND = ("watches something whose name its file system does not tell",
            "Have the program remove the watch before the checkpoint.")


class Inotifies(Kind):
    """An INOTIFY with its INOTIFY_WATCHes for each description."""

    def recognises(self, one: Description) -> bool:
        """By its link."""
        return one.link == "anon_inode:inotify"

    def dump(self, found: Sequence[Description], table: FileTable) -> Iterator[Record]:
        """Find out the names; events that wait to be read can be neither copied nor put back.

        Raises:
            TryLaterError: there are such events.
            TargetUnsupported: a name cannot be found out.
        """
        del table
        mounts = _mounts()
        for one in found:
            if _readable(one.borrowed):
                raise TryLaterError(Obstacle("fd.inotify", one.name, "has events that the program has not read",
                                             "Try again when it has read them."))
            yield Inotify(objref=one.objref, flags=one.flags, owner=one.owner)
            for line in one.info.entries:
                yield _dump_watch(one, line, mounts)

    def make(self, making: Making) -> None:
        """Watch again under the same numbers; raises ResourceChanged, RestartUnsupported."""
        for record in making.wanted(Inotify):
            fd = syscall(NR.INOTIFY_INIT1, _IN_CLOEXEC)
            making.add(record.objref, fd, record.flags)
            watches = making.plan.parts(InotifyWatch, record.objref)
            for watch in sorted(watches, key=lambda watch: watch.wd):
                _add(fd, watch, making.broker)
            if watches:
                _set_next(fd, max(watch.wd for watch in watches) + 1)


def _readable(fd: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), "little")


def _mounts() -> dict[int, list[str]]:
    """Return the mount points of each device number, as the kernel has it."""
    mounts: dict[int, list[str]] = {}
    for line in procfs.read("self", "mountinfo").split("\n")[:-1]:
        fields = line.split(" ")
        major, minor = fields[2].split(":")
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4])
        mounts.setdefault(int(major) << 20 | int(minor), []).append(point)
    return mounts


def _dump_watch(one: Description, line: str, mounts: dict[int, list[str]]) -> InotifyWatch:
    match = _LINE.fullmatch(line)
    if match and match[5]:
        handle = bytes.fromhex(match[5])
        for point in mounts.get(int(match[2], 16), []):
            with suppress(OSError, NativeError), _opened(point, int(match[4], 16), handle) as fd:
                path, was = os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd)
                found = os.lstat(path)
                if (found.st_dev, found.st_ino) == (was.st_dev, was.st_ino):
                    return InotifyWatch(objref=one.objref, wd=int(match[1], 16), path=path, device=was.st_dev,
                                        inode=was.st_ino, mask=int(match[3], 16))
    raise TargetUnsupported(reasons=[Obstacle("fd.inotify", one.name, *_UNFOUND)])


@contextmanager
def _opened(point: str, kind: int, handle: bytes) -> Iterator[int]:
    """Open a file of the file system that is mounted there by its handle."""
    mount = os.open(point, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fd = syscall(NR.OPEN_BY_HANDLE_AT, mount, _HANDLE.pack(len(handle), kind) + handle, _O_PATH | os.O_CLOEXEC)
    finally:
        os.close(mount)
    try:
        yield fd
    finally:
        os.close(fd)


def _add(fd: int, watch: InotifyWatch, broker: Broker) -> None:
    _set_next(fd, watch.wd)
    identity = watch.device, watch.inode
    place = broker.open(watch.path, _O_PATH | os.O_NOFOLLOW, identity)

    def add() -> int:
        return syscall(NR.INOTIFY_ADD_WATCH, fd, f"/proc/self/fd/{place}\0".encode(), watch.mask)

    try:
        if broker.allowed(add, identity, place) != watch.wd:
            raise RestartUnsupported(f"watch {watch.wd} of {watch.path} got another number")
    except NativeError as error:
        raise ResourceChanged(f"watching {watch.path}: {error.message}", path=watch.path) from error


def _set_next(fd: int, number: int) -> None:
    """Have the kernel take this number for the next watch (CONFIG_CHECKPOINT_RESTORE)."""
    try:
        fcntl.ioctl(fd, _IOC_SETNEXTWD, number)
    except OSError as error:
        raise RestartUnsupported(f"a watch with the number {number}: {error.strerror}") from error
