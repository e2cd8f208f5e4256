"""A directory of the local file system: 0600, durable before visible, visible at once or not at all.

An object is written under a temporary name, flushed (fdatasync), linked under its final name, and the directory is
flushed (fsync).  A link fails where a rename would replace what is there.  Without the first flush a power cut could
leave the final name with zeros (delayed allocation); without the second, no name.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import aiofiles

from crd.archive.threads import in_thread
from crd.durable import flush_directory
from crd.errors import ArchiveError, ArchiveFull, ArchiveUnavailable, BlobCorrupt, BlobMissing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from aiofiles.threadpool.binary import AsyncFileIO

    from crd.archive.stores.store import Part

_TORN = ".part"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_FILE = {errno.ELOOP, errno.ENXIO}  # a link, a socket
_IOV_MAX = 1024
_FLUSH_BYTES = 16 << 20


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn OSError into the archive's errors, in this one place."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ArchiveFull(f"{path.parent}: {error.strerror}", path=str(path),
                              hint="Free space, forget images, or move the archive.") from error
        raise ArchiveUnavailable(f"{path}: {error.strerror}", path=str(path)) from error


class LocalUpload:
    """A file under a temporary name, which goes with this object."""

    def __init__(self, path: Path, file: AsyncFileIO, key: str) -> None:
        """Write to a file that was just made; ``LocalStore.create`` makes these."""
        self._path = path
        self._file = file
        self._key = key
        self._discard = weakref.finalize(self, path.unlink, missing_ok=True)
        self._final: Path | None = None
        self._written = self._flushing = 0

    async def write(self, parts: Sequence[Part]) -> None:
        """Append the parts; the file is gone if that fails."""
        try:
            with _translated(self._path):
                await in_thread(self._write, parts)
        except ArchiveError:
            await self.abort()
            raise

    def _write(self, parts: Sequence[Part]) -> None:
        fd = self._file.fileno()
        self._written += _write_all(fd, parts)
        if (unflushed := self._written - self._flushing) >= _FLUSH_BYTES:
            # Begins to write back what is dirty, and does not wait (mm/fadvise.c): little is left for the fdatasync.
            os.posix_fadvise(fd, self._flushing, unflushed, os.POSIX_FADV_DONTNEED)
            self._flushing = self._written

    async def commit(self) -> None:
        """Flush the file, link it under its final name, flush the directory; or leave neither name."""
        final = self._path.parent / self._key
        try:
            with _translated(final):
                await in_thread(self._publish, final)
                await self._file.close()
        except BaseException:
            await self.abort()
            raise
        self._final = None

    def _publish(self, final: Path) -> None:
        os.fdatasync(self._file.fileno())
        try:
            os.link(self._path, final)
        except FileExistsError as error:
            raise ArchiveError(f"{final} exists already", path=str(final)) from error
        self._final = final
        self._discard()
        flush_directory(final.parent)

    async def abort(self) -> None:
        """Remove the file."""
        if not self._file.closed:
            with suppress(OSError):
                await self._file.close()
        with suppress(OSError):
            self._discard()
        if self._final:
            with suppress(OSError):
                self._final.unlink()
            self._final = None


class LocalStore:
    """Objects as files of one directory."""

    def __init__(self, directory: Path) -> None:
        """Use a directory, which is made if it is missing.

        Raises:
            ArchiveUnavailable: it cannot be used, is not ours, or is open to others.
        """
        self._directory = directory
        with _translated(directory):
            if not os.path.lexists(directory):
                directory.mkdir(mode=0o700, parents=True)
                flush_directory(directory.parent)
            found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise ArchiveUnavailable(f"{directory} is no directory", path=str(directory),
                                     hint="Name the directory itself, not a link to it.")
        if found.st_uid != os.geteuid():
            raise ArchiveUnavailable(f"{directory} belongs to user {found.st_uid}", path=str(directory),
                                     hint=f"chown {os.geteuid()} {directory}")
        if found.st_mode & 0o077:
            raise ArchiveUnavailable(f"{directory} can be read by others: images hold secrets", path=str(directory),
                                     hint=f"chmod 0700 {directory}")

    def describe(self) -> str:
        """Return the path."""
        return str(self._directory)

    async def create(self, key: str) -> LocalUpload:
        """Make a file under a temporary name."""
        path = self._directory / f"{secrets.token_hex(8)}{_TORN}"
        try:
            with _translated(path):
                return LocalUpload(path, await aiofiles.open(path, "xb", buffering=0, opener=_private), key)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """Read part of a file."""
        return await in_thread(self._read, self._directory / key, offset, length)

    @staticmethod
    def _read(path: Path, offset: int, length: int) -> bytes:
        with _translated(path):
            fd = _open(path)
            try:
                return os.pread(fd, length, offset)
            finally:
                os.close(fd)

    async def size(self, key: str) -> int:
        """Ask the file system."""
        return await in_thread(self._size, self._directory / key)

    @staticmethod
    def _size(path: Path) -> int:
        with _translated(path):
            fd = _open(path)
            try:
                return os.fstat(fd).st_size
            finally:
                os.close(fd)

    async def is_current(self, key: str) -> bool:
        """All are kept alike."""
        return await in_thread((self._directory / key).exists)

    async def objects(self) -> dict[str, int]:
        """List the directory, without what is torn, and without what is no file."""
        return await in_thread(self._list)

    def _list(self) -> dict[str, int]:
        sizes = {}
        with _translated(self._directory), os.scandir(self._directory) as entries:
            for entry in entries:
                if not entry.name.endswith(_TORN) and entry.is_file(follow_symlinks=False):
                    with suppress(FileNotFoundError):  # deleted meanwhile
                        sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
        return dict(sorted(sizes.items()))

    async def free_bytes(self) -> int | None:
        """See ``Store``: what the file system has left for us."""
        with _translated(self._directory):
            found: os.statvfs_result = await in_thread(os.statvfs, self._directory)
        return found.f_bavail * found.f_frsize

    async def delete(self, key: str) -> None:
        """Unlink a file, durably."""
        await in_thread(self._delete, self._directory / key)

    @staticmethod
    def _delete(path: Path) -> None:
        with _translated(path):
            path.unlink(missing_ok=True)
            flush_directory(path.parent)

    async def clear_torn(self) -> int:
        """Remove files with temporary names."""
        return await in_thread(self._clear_torn)

    def _clear_torn(self) -> int:
        with _translated(self._directory):
            torn = list(self._directory.glob(f"*{_TORN}"))
            for path in torn:
                path.unlink(missing_ok=True)
        return len(torn)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _open(path: Path) -> int:
    """Open an object; never a link, and never a FIFO or device, which could wait or answer for ever.

    Raises:
        BlobMissing: it is missing.
        BlobCorrupt: it is no file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise BlobMissing(f"{path} is missing", path=str(path)) from error
    except OSError as error:
        if error.errno in _NO_FILE:
            raise BlobCorrupt(f"{path} is no file", path=str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise BlobCorrupt(f"{path} is no file", path=str(path))
    return fd


def _write_all(fd: int, parts: Sequence[Part]) -> int:
    views = [memoryview(part) for part in parts if len(part)]
    while views:
        written = os.writev(fd, views[:_IOV_MAX])
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]
    return sum(map(len, parts))
