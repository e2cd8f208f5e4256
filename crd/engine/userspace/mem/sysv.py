"""System V shared memory (shmop(2)): segments under their numbers, attached where they were.

A segment may outlive all processes.  If it is still there and nobody has it attached, it gets the content of the image:
it is memory of the program, as any other.
"""

from __future__ import annotations

import os
import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.errors import NativeError, ResourceChanged, RestartError, RestartUnsupported, TargetError
from crd.image.profile import VMA_SHARED_MEMORY
from crd.image.sysv import SysvMemory
from crd.native.syscall import NR, syscall
from crd.target import sysv_ipc
from crd.target.wording import process_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.engine.userspace.fds.kind import Making
    from crd.engine.userspace.plan import Plan
    from crd.image.profile import Thread, Vma
    from crd.target.procfs import MapEntry
    from crd.target.sysv_ipc import Segment

_NAME = re.compile(r"/SYSV[0-9a-f]{8} \(deleted\)")
_CREATE, _EXCLUSIVE = 0o1000, 0o2000
_REMOVE, _SET, _LOCK = 0, 1, 11  # IPC_RMID, IPC_SET, SHM_LOCK
_READ_ONLY = 0o10000
_OWNER = struct.Struct("<iIIIII88x")  # struct shmid64_ds: key, uid, gid, creator's, mode
_OTHERS_MAY = 0o6
_MREMAP_MAYMOVE_FIXED = 3
_NEXT_NUMBER = "/proc/sys/kernel/shm_next_id"


def is_segment(entry: MapEntry) -> bool:
    """Whether an area is an attached segment; its inode is the segment's number."""
    return entry.shared and entry.is_file and bool(_NAME.fullmatch(entry.path))


def dump(objref: int, entry: MapEntry) -> SysvMemory:
    """Return the record of a segment, behind that of its memory; raises TargetError if it is none."""
    found = next((one for one in sysv_ipc.segments() if one.id == entry.inode), None)
    if not found:
        raise TargetError(f"the System V shared memory {entry.inode} is not in /proc/sysvipc/shm")
    return SysvMemory(
        objref=objref, number=found.id, key=found.key, asked_bytes=found.bytes,
        mode=found.mode & sysv_ipc.PERMISSIONS, uid=found.uid, gid=found.gid,
        removed=bool(found.mode & sysv_ipc.REMOVED), locked=bool(found.mode & sysv_ipc.LOCKED))


@dataclass(frozen=True, slots=True)
class Attached:
    """A segment that we have attached ourselves, to fill it: its number, and where."""

    number: int
    address: int


def check(plans: Sequence[Plan]) -> None:
    """Make sure that all segments can be had.

    Raises:
        ResourceChanged: another one has the number or the key, or somebody has it attached.
        RestartUnsupported: a process of the image could not have it by itself.
    """
    wanted = plans[0].of(SysvMemory)
    there = {one.id: one for one in sysv_ipc.segments()} if wanted else {}
    for record in wanted:
        for plan in plans:
            if any(vma.objref == record.objref for vma in plan.vmas):
                _check_owner(record, there.get(record.number), plan.leader)
        if found := there.get(record.number):
            _check_same(record, found)
        elif other := next((one for one in there.values() if record.key and one.key == record.key), None):
            raise ResourceChanged(f"the key {record.key:#x} of System V shared memory leads to segment {other.id} now",
                                  path="", hint=f"Remove that one, if nobody needs it: ipcrm -m {other.id}.")


def _check_same(record: SysvMemory, found: Segment) -> None:
    if (found.key, found.bytes) != (record.key, record.asked_bytes) or record.removed:
        raise ResourceChanged(f"System V shared memory {found.id} is another segment than the image knew", path="",
                              hint=f"Remove it, if nobody needs it: ipcrm -m {found.id}.")
    if found.attached:
        raise ResourceChanged(
            f"System V shared memory {found.id} is in use: it is attached {found.attached} times, last by "
            f"{process_name(found.last_pid)}", path="", hint="End the processes that have it.")


def _check_owner(record: SysvMemory, found: Segment | None, leader: Thread) -> None:
    """An image is no way to the memory of others."""
    who = leader.uids[1]
    owners = {record.uid} if found is None else {record.uid, found.uid}
    if who and owners != {who} and not (found.mode if found else record.mode) & _OTHERS_MAY == _OTHERS_MAY:
        raise RestartUnsupported(f"System V shared memory {record.number} is not of the user of the task (uid {who})")


def make(making: Making, plans: Sequence[Plan]) -> None:
    """Find or make the segments that any of the processes has, and attach them ourselves.

    Raises:
        RestartError: one cannot be made or attached.
    """
    attached = {vma.objref for plan in plans for vma in plan.vmas if vma.kind == VMA_SHARED_MEMORY}
    for record in making.plan.of(SysvMemory):
        if record.objref in attached:
            making.segments[record.objref] = _have(record, making)


def attach(plan: Plan, making: Making) -> None:
    """Attach the segments of the process whose turn it is, each part where it was.

    Raises:
        RestartError: one cannot be attached.
    """
    for record in plan.of(SysvMemory):
        areas = [vma for vma in plan.vmas if vma.kind == VMA_SHARED_MEMORY and vma.objref == record.objref]
        for flags, some in ((0, [vma for vma in areas if _may_write(vma)]),
                            (_READ_ONLY, [vma for vma in areas if not _may_write(vma)])):
            if some:
                _attach(record, some, flags, making)


def _attach(record: SysvMemory, areas: Sequence[Vma], flags: int, making: Making) -> None:
    """Attach a segment as a whole, then once more for each of its parts; these stay."""
    vessel, memory = making.vessel, making.plan.objects[record.objref]
    whole = vessel.reserve(memory.bytes)
    vessel.batch.call(NR.SHMAT, making.segments[record.objref].number, whole, flags,
                      what="attaching System V shared memory")
    for vma in areas:
        vessel.batch.call(NR.MREMAP, whole + vma.offset, 0, vma.end - vma.start, _MREMAP_MAYMOVE_FIXED, vma.start,
                          what="attaching a part of System V shared memory")
        vessel.batch.call(NR.MPROTECT, vma.start, vma.end - vma.start, vma.protection)
        vessel.flush()
    vessel.batch.call(NR.SHMDT, whole)
    vessel.run()


def _may_write(vma: Vma) -> bool:
    return "mw" in vma.flags.split()


def _have(record: SysvMemory, making: Making) -> Attached:
    """Find a segment or make it, and attach it."""
    try:
        number = record.number if any(one.id == record.number for one in sysv_ipc.segments()) else _make(record, making)
        return Attached(number, syscall(NR.SHMAT, number, 0, 0) & (1 << 64) - 1)
    except (NativeError, OSError) as error:
        raise RestartError(f"System V shared memory {record.number}: {os.strerror(error.errno or 0)}",
                           errno=error.errno) from error


def _make(record: SysvMemory, making: Making) -> int:
    """Make a segment under its number, which is gone again unless the tasks come to life."""
    with open(_NEXT_NUMBER, "w", encoding="ascii") as next_number:
        next_number.write(str(record.number))
    flags = record.mode | _CREATE | (_EXCLUSIVE if record.key else 0)
    number = syscall(NR.SHMGET, record.key, record.asked_bytes, flags)

    def remove() -> None:
        with suppress(NativeError):
            syscall(NR.SHMCTL, number, _REMOVE, 0)

    making.broker.undo(remove)
    if number != record.number:
        raise RestartError(f"System V shared memory gets the number {number}, not {record.number}: try again")
    return number


def settle(making: Making) -> None:
    """Give segments their owners and let go of them; all tasks have them attached by now.

    Raises:
        RestartError: it cannot be done.
    """
    for objref, attached in making.segments.items():
        [record] = making.plan.parts(SysvMemory, objref)
        owner = _OWNER.pack(0, record.uid, record.gid, 0, 0, record.mode)
        try:
            syscall(NR.SHMCTL, attached.number, _SET, owner)
            if record.locked:
                syscall(NR.SHMCTL, attached.number, _LOCK, 0)
            if record.removed:
                syscall(NR.SHMCTL, attached.number, _REMOVE, 0)
            syscall(NR.SHMDT, attached.address)
        except NativeError as error:
            raise RestartError(f"System V shared memory {record.number}: {error.message}", errno=error.errno) from error
