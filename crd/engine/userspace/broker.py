"""Descriptors that we open and the vessel pulls: one open file description for all that shared it."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from typing import TYPE_CHECKING

from crd.engine.userspace.fds import regular
from crd.errors import ResourceChanged, RestartUnsupported
from crd.native.syscall import NR

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from crd.image.profile import Process, RegularFile
    from crd.native.batch import Batch, Result


class Broker:
    """Our side of all open files; a context manager that closes them."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._fds: list[int] = []
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.fds_max = hard
        if soft < hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for fd in self._fds:
            with suppress(OSError):
                os.close(fd)

    def hold(self, fd: int) -> int:
        """Take over a descriptor of ours."""
        self._fds.append(fd)
        return fd

    def open_mapped(self, record: RegularFile, *, writable: bool) -> int:
        """Open a file that is to be mapped.

        Raises:
            ResourceChanged: it is missing or not what it was.
        """
        try:
            fd = self.hold(os.open(record.path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC))
        except OSError as error:
            raise ResourceChanged(f"{record.path}: {error.strerror}", path=record.path) from error
        regular.compare(record, os.fstat(fd), must_be_same=bool(record.mapped))
        return fd

    def open_program(self, process: Process) -> int:
        """Open the file that /proc/PID/exe is to show.

        Raises:
            ResourceChanged: it is missing, or another file.
        """
        try:
            fd = self.hold(os.open(process.exe, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise ResourceChanged(f"{process.exe}: {error.strerror}", path=process.exe) from error
        if os.fstat(fd).st_ino != process.exe_inode:
            raise ResourceChanged(f"{process.exe} is another file than the image knew", path=process.exe)
        return fd

    def pull(self, batch: Batch, fd: int) -> Result:
        """Add calls to a batch by which the vessel gets a duplicate of our descriptor; it closes on exec."""
        if fd >= self.fds_max:
            raise RestartUnsupported(f"descriptor {fd} is above the limit of open files, {self.fds_max}")
        pidfd = batch.call(NR.PIDFD_OPEN, os.getpid(), 0, what="pidfd_open of the restorer")
        pulled = batch.call(NR.PIDFD_GETFD, pidfd, fd, 0, what="pidfd_getfd")
        batch.call(NR.CLOSE, pidfd)
        return pulled
