"""The file table, made again: every description opened once by us, pulled by the vessel and put under its numbers."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING

from crd.engine.userspace.fds import pipe, regular
from crd.engine.userspace.fds.description import Owner, restart_owner
from crd.errors import RestartError, RestartUnsupported
from crd.image.profile import LOCK_POSIX, FileLock
from crd.native.syscall import NR

if TYPE_CHECKING:
    from crd.engine.userspace.broker import Broker
    from crd.engine.userspace.plan import Plan
    from crd.engine.userspace.vessel import Vessel

_FLOCK = struct.Struct("<hh4xqqi4x")  # struct flock
_ALL_FDS = 0xFFFF_FFFF
_TO_THE_END = 2**63 - 1
_SETLK = 6
_RDLCK, _WRLCK = 0, 1


def restart(plan: Plan, vessel: Vessel, broker: Broker, *, must_be_same: bool) -> None:
    """Give the vessel its descriptors and locks.

    Raises:
        ResourceChanged: a file is missing or not what it was.
        RestartError: a lock is held by somebody else.
        RestartUnsupported: a number is above our limit of open files.
    """
    ours = _open(plan, broker, must_be_same=must_be_same)
    _flocks(plan, ours)
    above = max((record.fd for record in plan.descriptors), default=-1) + 1
    if above + len(ours) >= broker.fds_max:
        raise RestartUnsupported(f"descriptor {above - 1} is above the limit of open files, {broker.fds_max}")
    places = {objref: above + index for index, objref in enumerate(ours)}
    for objref, fd in ours.items():
        vessel.batch.call(NR.DUP2, broker.pull(vessel.batch, fd), places[objref])
        vessel.flush()
    if above:
        vessel.batch.call(NR.CLOSE_RANGE, 0, above - 1, 0)
    for record in plan.descriptors:
        vessel.batch.call(NR.DUP3, places[record.objref], record.fd, os.O_CLOEXEC if record.close_on_exec else 0,
                          what=f"descriptor {record.fd}")
        vessel.flush()
    vessel.batch.call(NR.CLOSE_RANGE, above, _ALL_FDS, 0)
    for lock in plan.locks:
        if lock.kind == LOCK_POSIX:
            vessel.batch.call(NR.FCNTL, lock.fd, _SETLK, vessel.batch.data(_flock(lock)),
                              what=f"the lock on descriptor {lock.fd} (held by another process?)")
    vessel.run()


def _open(plan: Plan, broker: Broker, *, must_be_same: bool) -> dict[int, int]:
    """Open every description that a descriptor refers to; return our numbers by objref."""
    wanted = {record.objref for record in plan.descriptors}
    ours: dict[int, int] = {}
    for objref, record in plan.files.items():
        if objref in wanted:
            fd = ours[objref] = broker.hold(regular.restart(record, must_be_same=must_be_same))
            restart_owner(fd, Owner(record.owner_type, record.owner_pid, record.owner_signal))
    for number, made in plan.pipes.items():
        ends = [end for end in plan.pipe_ends.values() if end.pipe == number and end.objref in wanted]
        data = [chunk for chunk in plan.pipe_data if chunk.objref == number]
        for objref, fd in pipe.restart(made, ends, data).items():
            ours[objref] = broker.hold(fd)
    return ours


def _flocks(plan: Plan, ours: dict[int, int]) -> None:
    by_fd = {record.fd: record.objref for record in plan.descriptors}
    for lock in plan.locks:
        if lock.kind != LOCK_POSIX:
            kind = fcntl.LOCK_EX if lock.exclusive else fcntl.LOCK_SH
            try:
                fcntl.flock(ours[by_fd[lock.fd]], kind | fcntl.LOCK_NB)
            except OSError as error:
                raise RestartError(f"the lock on descriptor {lock.fd}: {error.strerror}",
                                   hint="Another process holds it; end that one first.") from error


def _flock(lock: FileLock) -> bytes:
    length = 0 if lock.end == _TO_THE_END else lock.end - lock.start + 1
    return _FLOCK.pack(_WRLCK if lock.exclusive else _RDLCK, os.SEEK_SET, lock.start, length, 0)
