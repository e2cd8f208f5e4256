"""Descriptors that we open and the vessel pulls: one open file description for all that shared it."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from crd.engine.userspace import limits
from crd.engine.userspace.fds import regular
from crd.errors import NativeError, ResourceChanged, RestartError, RestartUnsupported
from crd.native.syscall import NR, syscall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from crd.image.objects import RegularFile
    from crd.image.profile import Thread
    from crd.native.batch import Batch, Result

T = TypeVar("T")

_OPENAT2, _AT_FDCWD, _RESOLVE_NO_SYMLINKS = 437, -100, 4
_O_PATH = 0o10000000


class Broker:
    """Our side of all open files; a context manager that closes them.

    Files are opened with the rights of the task that is being made, so that its image is no way to what its user may
    not open.  What that user may not open (any more) is opened with ours if it is provably what the task had.
    """

    def __init__(self, leader: Thread) -> None:
        """Hold nothing yet; open for whoever the leader was."""
        self._leader = leader
        self._fds: list[int] = []
        self._undo: list[Callable[[], object]] = []
        self._last: dict[str, Callable[[], None]] = {}
        self._afterwards: list[Callable[[], None]] = []
        self.fds_max = limits.raise_our_own()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for act in reversed(self._undo):
            with suppress(OSError):
                act()
        for fd in self._fds:
            with suppress(OSError):
                os.close(fd)

    def undo(self, act: Callable[[], object]) -> None:
        """Do this at the end unless the task comes to life: take away what has a name."""
        self._undo.append(act)

    def at_last(self, what: str, act: Callable[[], None]) -> None:
        """Do this to something with a name when all is made and nothing runs yet; it must be able to be undone."""
        self._last[what] = act

    def afterwards(self, act: Callable[[], None]) -> None:
        """Do this when nothing keeps the tasks from coming to life; what fails is for their programs to find."""
        self._afterwards.append(act)

    def with_these_rights(self, act: Callable[[], None]) -> Callable[[], None]:
        """Return what does this with the rights of the task whose turn it is now, whenever it is called."""
        leader = self._leader

        def done() -> None:
            self.act_for(leader)
            with self.as_the_task():
                act()
        return done

    def keep(self) -> None:
        """Do what is to be done at last, and leave what was made: the task comes to life.

        Raises:
            RestartError: something of that cannot be done.
        """
        for what, act in self._last.items():
            try:
                act()
            except OSError as error:
                raise RestartError(f"{what}: {error.strerror}", path=what, errno=error.errno) from error
        self._undo.clear()
        for act in self._afterwards:
            with suppress(OSError, RestartError):
                act()

    def close(self, fd: int) -> None:
        """Close a descriptor before the others."""
        os.close(self.release(fd))

    def release(self, fd: int) -> int:
        """Give a descriptor back to whoever asks."""
        self._fds.remove(fd)
        return fd

    def act_for(self, leader: Thread) -> None:
        """Open files for another process from here on."""
        self._leader = leader

    def hold(self, fd: int) -> int:
        """Take over a descriptor of ours."""
        self._fds.append(fd)
        return fd

    def open(self, path: str, flags: int, identity: tuple[int, int]) -> int:
        """Open a file for the task, and hold it.

        Args:
            path: of the file.
            flags: of open(2).
            identity: device and inode of what the task had, which may be opened with our rights.

        Raises:
            ResourceChanged: it is missing, or neither the task's user's to open nor what the task had.
        """
        try:
            try:
                with self.as_the_task():
                    return self.hold(os.open(path, flags | os.O_CLOEXEC))
            except PermissionError:
                return self._open_the_very_one(path, flags, identity)
        except OSError as error:
            raise ResourceChanged(f"{path}: {error.strerror}", path=path,
                                  hint="Put the file back, or choose another image.") from error

    def _open_the_very_one(self, path: str, flags: int, identity: tuple[int, int]) -> int:
        place = os.open(path, _O_PATH | os.O_CLOEXEC)
        try:
            found = os.fstat(place)
            if (found.st_dev, found.st_ino) != identity:
                raise ResourceChanged(f"{path} is another file than the image knew, and its user may not open it",
                                      path=path)
            return self.hold(os.open(f"/proc/self/fd/{place}", flags & ~os.O_NOFOLLOW | os.O_CLOEXEC))
        finally:
            os.close(place)

    def allowed(self, act: Callable[[], T], identity: tuple[int, int], place: int) -> T:
        """Do something with a file as the task's user, or with our rights if it is provably what the task had.

        Args:
            act: what to do; raises NativeError with EACCES or EPERM if this user may not.
            identity: device and inode of what the task had.
            place: our descriptor of the file.
        """
        try:
            with self.as_the_task():
                return act()
        except NativeError as error:
            found = os.fstat(place)
            if error.errno not in {errno.EACCES, errno.EPERM} or (found.st_dev, found.st_ino) != identity:
                raise
            return act()

    def open_directory(self, path: str) -> int:
        """Open a directory that the task was in, and hold it; one may be where one could not go (again).

        With our rights no symbolic link is followed: a user can lead a path elsewhere only by one.

        Raises:
            ResourceChanged: it is missing, or no directory.
        """
        flags = _O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            try:
                with self.as_the_task():
                    return self.hold(os.open(path + "/.", flags))  # the dot: may one enter it?
            except PermissionError:
                how = flags.to_bytes(8, "little") + bytes(8) + _RESOLVE_NO_SYMLINKS.to_bytes(8, "little")
                return self.hold(syscall(_OPENAT2, _AT_FDCWD, os.fsencode(path) + b"\0", how, len(how)))
        except (OSError, NativeError) as error:
            raise ResourceChanged(f"the directory {path}: {os.strerror(error.errno or 0)}", path=path,
                                  hint="Make it again.") from error

    @property
    def leader(self) -> Thread:
        """Whoever files are opened for at the moment."""
        return self._leader

    @property
    def file_owner(self) -> tuple[int, int]:
        """Uid and gid that what the task makes on a file system gets."""
        return self._leader.uids[3], self._leader.gids[3]

    @contextmanager
    def as_the_task(self) -> Iterator[None]:
        """Have the rights on files that the leader of the image had (setfsuid(2)); as nobody but root we do anyway."""
        uid, gid = self.file_owner
        if os.geteuid() or not uid:
            yield
            return
        groups, our_gid = os.getgroups(), os.getegid()
        os.setgroups(self._leader.groups)
        syscall(NR.SETFSGID, gid)
        syscall(NR.SETFSUID, uid)
        try:
            yield
        finally:
            syscall(NR.SETFSUID, 0)
            syscall(NR.SETFSGID, our_gid)
            os.setgroups(groups)

    def open_mapped(self, record: RegularFile, *, writable: bool) -> int:
        """Open a file that is to be mapped.

        Raises:
            ResourceChanged: it is missing or not what it was.
        """
        fd = self.open(record.path, os.O_RDWR if writable else os.O_RDONLY, (record.device, record.inode))
        regular.compare(record, os.fstat(fd), must_be_same=bool(record.mapped))
        return fd

    def open_again(self, fd: int, *, writable: bool) -> int:
        """Open a file of ours once more, to be mapped."""
        return self.hold(os.open(f"/proc/self/fd/{fd}", (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC))

    def pull(self, batch: Batch, fd: int) -> Result:
        """Add calls to a batch by which the vessel gets a duplicate of our descriptor; it closes on exec."""
        if fd >= self.fds_max:
            raise RestartUnsupported(f"descriptor {fd} is above the limit of open files, {self.fds_max}")
        pidfd = batch.call(NR.PIDFD_OPEN, os.getpid(), 0, what="pidfd_open of the restorer")
        pulled = batch.call(NR.PIDFD_GETFD, pidfd, fd, 0, what="pidfd_getfd")
        batch.call(NR.CLOSE, pidfd)
        return pulled
