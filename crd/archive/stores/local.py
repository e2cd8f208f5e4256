"""A directory of the local file system: 0600, durable before visible, visible at once or not at all."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import aiofiles

from crd.errors import ArchiveError, ArchiveFull, ArchiveUnavailable, BlobMissing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from aiofiles.threadpool.binary import AsyncBufferedIOBase

    from crd.archive.stores.store import Part

_TORN = ".part"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn OSError into the archive's errors, in this one place."""
    try:
        yield
    except FileNotFoundError as error:
        raise BlobMissing(f"{path} is missing", path=str(path)) from error
    except OSError as error:
        if error.errno in _FULL:
            raise ArchiveFull(f"{path.parent}: {error.strerror}", path=str(path),
                              hint="Free space, forget images, or move the archive.") from error
        raise ArchiveUnavailable(f"{path}: {error.strerror}", path=str(path)) from error


class LocalUpload:
    """A file under a temporary name."""

    def __init__(self, path: Path, file: AsyncBufferedIOBase) -> None:
        self._path: Path | None = path
        self._file = file

    async def write(self, parts: Sequence[Part]) -> None:
        """Append the parts."""
        assert self._path is not None  # noqa: S101
        with _translated(self._path):
            await self._file.write(b"".join(parts))

    async def commit(self, key: str) -> None:
        """fdatasync, then a link under the final name, which fails if that is taken, then fsync of the directory."""
        assert self._path is not None  # noqa: S101
        final = self._path.parent / key
        with _translated(final):
            await self._file.flush()
            await asyncio.to_thread(os.fdatasync, self._file.fileno())
            await self._file.close()
            try:
                await asyncio.to_thread(os.link, self._path, final)
            except FileExistsError as error:
                raise ArchiveError(f"{final} exists already", path=str(final)) from error
            self._path.unlink()
            self._path = None
            await asyncio.to_thread(_fsync_directory, final.parent)

    async def abort(self) -> None:
        """Remove the file."""
        if self._path:
            path, self._path = self._path, None
            with suppress(OSError):
                await self._file.close()
            with suppress(OSError):
                path.unlink()


class LocalStore:
    """Objects as files of one directory."""

    def __init__(self, directory: Path) -> None:
        """Use a directory, which is made if it is missing.

        Raises:
            ArchiveUnavailable: it cannot be used, or is open to others.
        """
        self._directory = directory
        with _translated(directory / "."):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise ArchiveUnavailable(f"{directory} is no directory of our own", path=str(directory))
        if found.st_mode & 0o077:
            raise ArchiveUnavailable(f"{directory} can be read by others: images hold secrets", path=str(directory),
                                     hint=f"chmod 0700 {directory}")

    def describe(self) -> str:
        """Return the path."""
        return str(self._directory)

    async def create(self) -> LocalUpload:
        """Open a file under a temporary name."""
        path = self._directory / f"{secrets.token_hex(8)}{_TORN}"
        with _translated(path):
            file = await aiofiles.open(path, "xb", opener=_private)
        return LocalUpload(path, file)

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """Read part of a file."""
        path = self._directory / key
        with _translated(path):
            return await asyncio.to_thread(_pread, path, offset, length)

    async def size(self, key: str) -> int:
        """Ask the file system."""
        path = self._directory / key
        with _translated(path):
            return path.lstat().st_size

    async def keys(self) -> list[str]:
        """List the directory, without what is torn."""
        with _translated(self._directory / "."):
            names = await asyncio.to_thread(os.listdir, self._directory)
        return sorted(name for name in names if not name.endswith(_TORN))

    async def delete(self, key: str) -> None:
        """Unlink a file, durably."""
        path = self._directory / key
        with _translated(path):
            path.unlink(missing_ok=True)
            await asyncio.to_thread(_fsync_directory, self._directory)

    async def clear_torn(self) -> int:
        """Remove files with temporary names."""
        torn = [path for path in self._directory.iterdir() if path.name.endswith(_TORN)]
        for path in torn:
            path.unlink(missing_ok=True)
        return len(torn)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _pread(path: Path, offset: int, length: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def _fsync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
