"""The file that an image is written to: there whole, or not at all.

An image is written to a file without a name, which is gone if this process dies, and gets its name once it is safe on
disk.  File systems without such files (O_TMPFILE, open(2)) get one with a name of its own, beside the real one.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crd.errors import CrdError

if TYPE_CHECKING:
    from collections.abc import Iterator

STANDARD_STREAM = Path("-")

_WRITE = os.O_WRONLY | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}

_HINTS = {
    errno.ENOENT: "Make its directory first, or name a file elsewhere.",
    errno.ENOTDIR: "Name a file in a directory.",
    errno.EISDIR: "Name a file in that directory.",
    errno.EACCES: "Name a file where you may write, or run crd as root.",
    errno.ELOOP: "Remove the link, or name another file.",
    errno.ENOSPC: "Free some space, or name a file on another disk.",
    errno.EDQUOT: "Free some space, or name a file on another disk.",
}


class Output:
    """Where an image goes.

    Attributes:
        fd: open for writing.
        is_new: it is a file of our own, which may be written to in any order; all else takes byte after byte.
    """

    is_new = False

    def __init__(self, fd: int) -> None:
        """Write to a stream or device, as it is."""
        self.fd = fd

    def write(self, data: bytes | memoryview) -> None:
        """Write all of it.

        Raises:
            CrdError: it cannot be written.
            BrokenPipeError: nobody reads it any more.
        """
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.fd, view):]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _failed("the image", error) from error

    def commit(self) -> None:
        """Make what was written durable; the image is there from now on.

        Raises:
            CrdError: it cannot be.
        """
        try:
            os.fsync(self.fd)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EROFS}:  # a pipe or a device: nothing to synchronise
                raise _failed("the image", error) from error


class _File(Output):
    """A regular file, new or replaced."""

    is_new = True

    def __init__(self, path: Path, directory: int, fd: int, beside: str | None) -> None:
        super().__init__(fd)
        self._path = path
        self._directory = directory
        self._beside = beside

    def commit(self) -> None:
        try:
            os.fsync(self.fd)
            if self._beside is None:
                beside = _name_beside()
                os.link(f"/proc/self/fd/{self.fd}", beside, src_dir_fd=self._directory, dst_dir_fd=self._directory)
                self._beside = beside
            os.rename(self._beside, self._path.name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            self._beside = None
            os.fsync(self._directory)
        except OSError as error:
            raise _failed(self._path, error) from error

    def discard(self) -> None:
        if self._beside is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._beside, dir_fd=self._directory)


@contextmanager
def opened_for_writing(path: Path) -> Iterator[Output]:
    """Open what ``-o`` names: ``-`` is standard output; devices and pipes are written to as they are.

    Without ``commit`` nothing is left of a new file, and an old one stays as it was.

    Raises:
        CrdError: it cannot be written to.
        click.UsageError: it is a terminal.
    """
    if path == STANDARD_STREAM:
        sys.stdout.flush()
        yield _no_terminal(sys.stdout.fileno())
        return
    try:
        special = path.exists() and not stat.S_ISREG(path.stat().st_mode)
        path = path if special else _resolved(path)
        opened = os.open(path, _WRITE | os.O_NOCTTY) if special else os.open(path.parent, _DIRECTORY)
    except OSError as error:
        raise _failed(path, error) from error
    try:
        if special:
            yield _no_terminal(opened)
        else:
            with _new_file(path, opened) as output:
                yield output
    finally:
        os.close(opened)


@contextmanager
def _new_file(path: Path, directory: int) -> Iterator[Output]:
    beside = None
    try:
        try:
            fd = os.open(".", os.O_TMPFILE | _WRITE, 0o600, dir_fd=directory)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            beside = _name_beside()
            fd = os.open(beside, os.O_CREAT | os.O_EXCL | _WRITE, 0o600, dir_fd=directory)
    except OSError as error:
        raise _failed(path, error) from error
    file = _File(path, directory, fd, beside)
    try:
        yield file
    finally:
        file.discard()
        os.close(fd)


@contextmanager
def opened_for_reading(path: Path) -> Iterator[int]:
    """Open what ``-i`` names, ``-`` being standard input.

    Raises:
        CrdError: it cannot be read.
        click.UsageError: it is a terminal.
    """
    if path == STANDARD_STREAM:
        yield _no_terminal(sys.stdin.fileno()).fd
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.close(fd)
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise CrdError(f"{path} cannot be read: {error.strerror}", path=str(path),
                       hint="Name a file that holds an image, or - for standard input.") from error
    try:
        yield fd
    finally:
        os.close(fd)


def write_pid_file(path: Path, pid: int) -> None:
    """Write a pid into a file, all at once, readable by everybody.

    Raises:
        CrdError: it cannot be written.
    """
    beside = path.with_name(_name_beside())
    try:
        fd = os.open(beside, os.O_CREAT | os.O_EXCL | _WRITE, 0o644)
        try:
            os.write(fd, b"%d\n" % pid)
        finally:
            os.close(fd)
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise _failed(path, error) from error


def _resolved(path: Path) -> Path:
    """Return where links lead; raises OSError."""
    try:
        return path.resolve()
    except RuntimeError as error:  # before Python 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error


def _name_beside() -> str:
    return f".crd-{secrets.token_hex(8)}"


def _no_terminal(fd: int) -> Output:
    if os.isatty(fd):
        raise click.UsageError("an image is not for a terminal: name a file, or use a pipe",
                               click.get_current_context())
    return Output(fd)


def _failed(what: Path | str, error: OSError) -> CrdError:
    return CrdError(f"{what} cannot be written: {error.strerror}", path=str(what),
                    hint=_HINTS.get(error.errno or 0, ""))
