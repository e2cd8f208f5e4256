"""Processes held by a descriptor: pidfd_open(2) on the task itself, or on a process that has ended."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crd.engine.userspace.fds.kind import Kind, Making
from crd.errors import Obstacle, RestartUnsupported, TargetUnsupported
from crd.image.objects import PidFd
from crd.native.syscall import NR, syscall

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.fds.table import FileTable
    from crd.image.codec import Record

_DEAD = -1
_OPENED_WITH = os.O_NONBLOCK | os.O_EXCL  # PIDFD_NONBLOCK, PIDFD_THREAD


class PidFds(Kind):
    """A PID_FD each."""

    def recognises(self, one: Description) -> bool:
        """By its link, which has the inode in kernels where each process has one."""
        return one.link.startswith(("anon_inode:[pidfd]", "pidfd:["))

    def dump(self, found: Sequence[Description], table: FileTable) -> Iterator[Record]:
        """Note whose it is; raises TargetUnsupported if it is another process's."""
        for one in found:
            pid = int(one.info.extra["Pid"])
            if pid not in {_DEAD, *(record.pid for record in table.descriptors)}:
                raise TargetUnsupported(reasons=[Obstacle("fd.pidfd", one.name, "stands for another process or thread",
                                                          "Close it before the checkpoint.")])
            yield PidFd(objref=one.objref, flags=one.flags, owner=one.owner, pid=pid)

    def make(self, making: Making) -> None:
        """Open the vessel, which is the task soon, or a process that has just ended."""
        for record in making.wanted(PidFd):
            how = record.flags & _OPENED_WITH
            if record.pid == _DEAD:
                fd = _open_ended(how)
            elif record.pid in making.vessels:
                fd = syscall(NR.PIDFD_OPEN, making.vessels[record.pid].pid, how)
            else:
                raise RestartUnsupported(f"a pidfd of the image stands for process {record.pid}, which it has not")
            making.add(record.objref, fd)


def _open_ended(how: int) -> int:
    child = os.fork()
    if not child:
        os._exit(0)
    try:
        return syscall(NR.PIDFD_OPEN, child, how)
    finally:
        os.waitpid(child, 0)
