"""An address space, made again in a vessel."""

from __future__ import annotations

import os
import re
import struct
from typing import TYPE_CHECKING

from crd.engine.userspace.fds import regular
from crd.engine.userspace.mem import guards, huge, inheritance, policies, sysv
from crd.errors import ResourceChanged
from crd.image.objects import RegularFile
from crd.image.profile import VMA_ANONYMOUS, VMA_PRIVATE_FILE, VMA_SHARED_FILE, VMA_SHARED_MEMORY
from crd.native.syscall import NR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.engine.userspace.broker import Broker
    from crd.engine.userspace.fds.kind import Making
    from crd.engine.userspace.mem.homes import Homes
    from crd.engine.userspace.mem.runs import Run
    from crd.engine.userspace.plan import Plan
    from crd.engine.userspace.vessel import Vessel
    from crd.image.profile import Vma
    from crd.native.batch import Batch

_SHARED, _PRIVATE, _FIXED, _ANONYMOUS, _GROWSDOWN, _NORESERVE = 1, 2, 0x10, 0x20, 0x100, 0x4000
_WRITE = 2
_PR_SET_MM, _PR_SET_MM_MAP, _PR_SET_VMA, _PR_SET_VMA_ANON_NAME = 35, 14, 0x53564D41, 0
_MM_MAP = struct.Struct("<12QII")
_EXE_FD = 100
_MLOCK_ONFAULT = 1
_ADVICE = {"sr": 2, "rr": 1, "dc": 10, "hg": 14, "nh": 15, "mg": 12, "dd": 16, "wf": 18}
_ANON_NAME = re.compile(r"\[anon:([^\[\]\\$`]{1,79})\]")


def map_areas(making: Making, homes: Homes) -> list[Run]:
    """Map every area of the process whose turn it is with its final protection.

    Args:
        making: with the files that only the image has.
        homes: of the shared memory objects.

    Returns:
        What the vessel was born with and keeps.
    """
    plan, vessel, broker = making.plan, making.vessel, making.broker
    kept = inheritance.keep(vessel, plan.vmas)
    vessel.settle(plan)
    vessel.areas = plan.vmas
    areas = inheritance.afresh(plan.vmas, kept)
    sysv.attach(plan, making)
    for (objref, writable), some in _by_file(areas).items():
        record = plan.objects[objref]
        content = making.contents.get(objref)
        opened = broker.open_mapped(record, writable=writable) if content is None else (
            broker.open_again(content, writable=writable))
        fd = broker.pull(vessel.batch, opened)
        for vma in some:
            vessel.batch.call(NR.MMAP, vma.start, vma.end - vma.start, vma.protection, _flags(vma), fd, vma.offset,
                              what=f"mapping {record.path}")
        vessel.batch.call(NR.CLOSE, fd)
        vessel.run()
    for vma in areas:
        if vma.kind == VMA_ANONYMOUS:
            vessel.batch.call(NR.MMAP, vma.start, vma.end - vma.start, vma.protection, _flags(vma), -1, 0,
                              what=f"mapping {vma.start:#x} {vma.name}")
        elif vma.kind == VMA_SHARED_MEMORY and vma.objref in homes:
            fd = broker.pull(vessel.batch, homes[vma.objref].fd)
            vessel.batch.call(NR.MMAP, vma.start, vma.end - vma.start, vma.protection, _FIXED | _SHARED, fd,
                              vma.offset, what="mapping shared memory")
            vessel.batch.call(NR.CLOSE, fd)
        policies.restart_area(vma, vessel.batch)
        vessel.flush()
    vessel.run()
    return kept


def _by_file(vmas: Sequence[Vma]) -> dict[tuple[int, bool], list[Vma]]:
    """Return the areas of each file by its objref and whether it must be open for writing.

    A shared area that is or could become writable (VM_MAYWRITE) needs that; any other must not have it.
    """
    areas: dict[tuple[int, bool], list[Vma]] = {}
    for vma in vmas:
        if vma.kind in {VMA_PRIVATE_FILE, VMA_SHARED_FILE}:
            may_write = bool(vma.protection & _WRITE) or "mw" in vma.flags.split()
            areas.setdefault((vma.objref, vma.kind == VMA_SHARED_FILE and may_write), []).append(vma)
    return areas


def _flags(vma: Vma) -> int:
    flags = set(vma.flags.split())
    return (_FIXED | (_SHARED if vma.kind == VMA_SHARED_FILE else _PRIVATE)
            | (_ANONYMOUS if vma.kind == VMA_ANONYMOUS else 0)
            | (huge.MAP_FLAGS if vma.kind == VMA_ANONYMOUS and huge.has(vma) else 0)
            | (_GROWSDOWN if "gd" in flags else 0) | (_NORESERVE if "nr" in flags else 0))


def _lock(vma: Vma, batch: Batch) -> None:
    """Lock an area in memory; where it cannot be touched mlock(2) locks it and says ENOMEM."""
    on_fault = _MLOCK_ONFAULT if "lf" in vma.flags.split() else 0
    batch.call(NR.MLOCK2, vma.start, vma.end - vma.start, on_fault, check=bool(vma.protection),
               what=f"locking {vma.start:#x}")


def finish(plan: Plan, vessel: Vessel, broker: Broker) -> None:
    """Give advice again, which no child is to inherit any more, and set the fields of the memory map."""
    batch, memory = vessel.batch, plan.memory
    guards.restart(plan, vessel)
    for vma in plan.vmas:
        for flag in vma.flags.split():
            if flag in _ADVICE:
                batch.call(NR.MADVISE, vma.start, vma.end - vma.start, _ADVICE[flag], check=False)
            elif flag == "lo":
                _lock(vma, batch)
        if name := _ANON_NAME.fullmatch(vma.name):
            batch.call(NR.PRCTL, _PR_SET_VMA, _PR_SET_VMA_ANON_NAME, vma.start, vma.end - vma.start,
                       batch.text(name[1]), check=False)
        vessel.flush()
    vessel.run()
    pulled = broker.pull(batch, _open_program(plan, broker))
    batch.call(NR.DUP3, pulled, _EXE_FD, 0)
    auxv = batch.data(memory.auxv)
    fields = batch.data(_MM_MAP.pack(
        memory.start_code, memory.end_code, memory.start_data, memory.end_data, memory.start_brk, memory.brk,
        memory.start_stack, memory.arg_start, memory.arg_end, memory.env_start, memory.env_end, auxv,
        len(memory.auxv), _EXE_FD))
    batch.call(NR.PRCTL, _PR_SET_MM, _PR_SET_MM_MAP, fields, _MM_MAP.size, 0, what="prctl(PR_SET_MM_MAP)")
    batch.call(NR.CLOSE, pulled)
    batch.call(NR.CLOSE, _EXE_FD)
    vessel.run()


def _open_program(plan: Plan, broker: Broker) -> int:
    """Open the file that /proc/PID/exe is to show."""
    process = plan.process
    fd = broker.open(process.exe, os.O_RDONLY, (process.exe_device, process.exe_inode))
    check_program(plan, os.fstat(fd))
    return fd


def check_program(plan: Plan, found: os.stat_result) -> None:
    """Hold what the program's path leads to against what the image knew; a copy of the mapped file is as good.

    Raises:
        ResourceChanged: it is another file.
    """
    process = plan.process
    mapped = next((record for record in plan.of(RegularFile) if record.mapped and record.path == process.exe), None)
    if mapped:
        regular.compare(mapped, found, must_be_same=True)
    elif (found.st_dev, found.st_ino) != (process.exe_device, process.exe_inode):
        raise ResourceChanged(f"{process.exe} is another file than the image knew", path=process.exe)
