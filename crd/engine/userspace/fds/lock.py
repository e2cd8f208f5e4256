"""Locks on files and leases, taken again.

Those of a description (flock(2), open file description locks) by us, those of a process (POSIX) and leases by the task
itself.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.engine.userspace.fds.kind import TryLaterError
from crd.errors import Obstacle, ResourceChanged, TargetUnsupported
from crd.image.objects import RegularFile
from crd.image.profile import LOCK_FLOCK, LOCK_LEASE, LOCK_OFD, LOCK_POSIX, FileLock
from crd.native.syscall import NR
from crd.target import procfs
from crd.target.wording import process_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from crd.engine.userspace.clash import Clash
    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.plan import Plan
    from crd.native.batch import Batch

_FLOCK = struct.Struct("<hh4xqqi4x")  # struct flock
_RANGE_END = 2**63 - 1
_SETLK, _OFD_SETLK = 6, 37
_RDLCK, _WRLCK = 0, 1
_KINDS = {"POSIX": LOCK_POSIX, "FLOCK": LOCK_FLOCK, "OFDLCK": LOCK_OFD, "LEASE": LOCK_LEASE}
_RANGES = {LOCK_POSIX, LOCK_OFD}


@dataclass(frozen=True, slots=True)
class _Held:
    """A line of /proc/locks: what somebody holds."""

    kind: int
    exclusive: bool
    pid: int
    device: int
    inode: int
    start: int
    end: int

    def excludes(self, lock: FileLock) -> bool:
        """Whether a lock on the same file cannot be had beside this one."""
        overlap = self.start <= lock.end and lock.start <= self.end
        alike = self.kind == lock.kind or {self.kind, lock.kind} == _RANGES
        return alike and overlap and bool(self.exclusive or lock.exclusive)


def dump(pid: int, one: Description) -> Iterator[FileLock]:
    """Yield the locks on a description's file that fdinfo shows: those of the process, and of the description.

    Raises:
        TargetUnsupported: there is one of another kind.
        TryLaterError: it is a lease that is being broken.
    """
    for held in one.info.locks:
        if held.kind not in _KINDS:
            raise TargetUnsupported(reasons=[Obstacle("fd.lock", one.name, f"holds a lock of kind {held.kind}")])
        if held.breaking:
            raise TryLaterError(Obstacle("fd.lease", one.name, "holds a lease that another process waits for",
                                         "Have the program give it up."))
        yield FileLock(pid=pid, kind=_KINDS[held.kind], exclusive=held.exclusive, fd=one.fd, start=held.start,
                       end=held.end)


def clashes(plan: Plan) -> Iterator[Clash]:
    """Tell who holds what the image's task had locked."""
    held = list(_held()) if plan.locks else []
    for lock in plan.locks:
        record = _file(plan, lock)
        if record is None:
            continue
        try:
            found = os.stat(record.path)
        except OSError:
            continue  # it is missing, which its kind tells
        for other in held:
            if (other.device, other.inode) == (found.st_dev, found.st_ino) and other.excludes(lock):
                yield ResourceChanged(f"{record.path} is locked by {process_name(other.pid)}", path=record.path,
                                      hint="End that process first.")


def check(plan: Plan) -> None:
    """Make sure that nobody holds what the image's task had locked; raises ResourceChanged."""
    for error in clashes(plan):
        raise error


def _file(plan: Plan, lock: FileLock) -> RegularFile | None:
    found = plan.objects[next(record.objref for record in plan.descriptors if record.fd == lock.fd)]
    return found if isinstance(found, RegularFile) else None


def _held() -> Iterator[_Held]:
    """Parse /proc/locks (proc_locks(5)); a lock that only waits shows an arrow."""
    for line in procfs.read("locks", "").split("\n"):
        words = line.split()
        if len(words) == 8 and words[1] in _KINDS:
            major, minor, inode = words[5].split(":")
            device = os.makedev(int(major, 16), int(minor, 16))
            end = _RANGE_END if words[7] == "EOF" else int(words[7])
            yield _Held(_KINDS[words[1]], words[3] == "WRITE", int(words[4]), device, int(inode), int(words[6]), end)


def restart_of_descriptions(plan: Plan, ours: Mapping[int, int]) -> None:
    """Lock the descriptions; they keep it when the task has them.

    Args:
        plan: with the locks.
        ours: descriptors by objref.

    Raises:
        ResourceChanged: somebody holds one.
    """
    by_fd = {record.fd: record.objref for record in plan.descriptors}
    for lock in plan.locks:
        try:
            if lock.kind == LOCK_FLOCK:
                fcntl.flock(ours[by_fd[lock.fd]], (fcntl.LOCK_EX if lock.exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            elif lock.kind == LOCK_OFD:
                fcntl.fcntl(ours[by_fd[lock.fd]], _OFD_SETLK, _flock(lock))
        except BlockingIOError as error:
            check(plan)
            raise ResourceChanged(f"the lock on descriptor {lock.fd} is held by another process") from error


def restart_leases(plan: Plan, batch: Batch) -> None:
    """Have the task take its leases: the signal of a broken one tells the descriptor."""
    for lock in plan.locks:
        if lock.kind == LOCK_LEASE:
            batch.call(NR.FCNTL, lock.fd, fcntl.F_SETLEASE, _WRLCK if lock.exclusive else _RDLCK,
                       what=f"the lease on descriptor {lock.fd}")


def restart_posix(plan: Plan, batch: Batch) -> None:
    """Have the task lock its ranges; closing any descriptor of such a file from here on would give them up."""
    for lock in plan.locks:
        if lock.kind == LOCK_POSIX:
            batch.call(NR.FCNTL, lock.fd, _SETLK, batch.data(_flock(lock)), what=f"the lock on descriptor {lock.fd}")


def _flock(lock: FileLock) -> bytes:
    length = 0 if lock.end == _RANGE_END else lock.end - lock.start + 1
    return _FLOCK.pack(_WRLCK if lock.exclusive else _RDLCK, os.SEEK_SET, lock.start, length, 0)
