"""An address space, made again in a vessel."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.engine.userspace.fds import regular
from crd.engine.userspace.mem import sysv
from crd.errors import MemoryFault, ResourceChanged, RestartError
from crd.image.objects import FileContent, RegularFile, SharedMemory
from crd.image.profile import (
    PAGE_BYTES,
    VMA_ANONYMOUS,
    VMA_PRIVATE_FILE,
    VMA_SHARED_FILE,
    VMA_SHARED_MEMORY,
    Pages,
    SharedPages,
)
from crd.image.sysv import SysvMemory
from crd.native.memory import process_write_runs
from crd.native.syscall import NR

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from crd.engine.userspace.broker import Broker
    from crd.engine.userspace.fds.kind import Making
    from crd.engine.userspace.plan import Plan
    from crd.engine.userspace.vessel import Vessel
    from crd.image.codec import Record
    from crd.image.profile import Vma
    from crd.native.batch import Batch

_SHARED, _PRIVATE, _FIXED, _ANONYMOUS, _GROWSDOWN, _NORESERVE, _STACK = 1, 2, 0x10, 0x20, 0x100, 0x4000, 0x20000
_FIXED_NOREPLACE = 0x100000
_WRITE, _READ_WRITE = 2, 3
_MREMAP_MAYMOVE_FIXED = 3
_PR_SET_MM, _PR_SET_MM_MAP, _PR_SET_VMA, _PR_SET_VMA_ANON_NAME = 35, 14, 0x53564D41, 0
_MM_MAP = struct.Struct("<12QII")
_EXE_FD = 100
_MLOCK_ONFAULT = 1
_ADVICE = {"sr": 2, "rr": 1, "dc": 10, "hg": 14, "nh": 15, "mg": 12, "dd": 16, "wf": 18}
_ANON_NAME = re.compile(r"\[anon:([^\[\]\\$`]{1,79})\]")


@dataclass(frozen=True, slots=True)
class Home:
    """Where a shared memory object lies as a whole, until ``finish``, and our descriptor of it."""

    vessel: Vessel
    address: int
    fd: int


def map_areas(making: Making, homes: dict[int, Home]) -> None:
    """Map every area of the process whose turn it is with its final protection.

    Args:
        making: with the files that only the image has.
        homes: of the shared memory objects by objref; those that this process is the first to use are added.
    """
    plan, vessel, broker = making.plan, making.vessel, making.broker
    _map_shared(plan, vessel, broker, homes)
    sysv.attach(plan, making)
    for (objref, writable), areas in _by_file(plan).items():
        record = plan.objects[objref]
        content = making.contents.get(objref)
        opened = broker.open_mapped(record, writable=writable) if content is None else (
            broker.open_again(content, writable=writable))
        fd = broker.pull(vessel.batch, opened)
        for vma in areas:
            vessel.batch.call(NR.MMAP, vma.start, vma.end - vma.start, vma.protection, _flags(vma), fd, vma.offset,
                              what=f"mapping {record.path}")
        vessel.batch.call(NR.CLOSE, fd)
        vessel.run()
    for vma in plan.vmas:
        if vma.kind == VMA_ANONYMOUS:
            vessel.batch.call(NR.MMAP, vma.start, vma.end - vma.start, vma.protection, _flags(vma), -1, 0,
                              what=f"mapping {vma.start:#x} {vma.name}")
        elif vma.kind == VMA_SHARED_MEMORY and vma.objref in homes:
            _map_part(vma, vessel, broker, homes[vma.objref])
        vessel.flush()
    vessel.run()


def _map_part(vma: Vma, vessel: Vessel, broker: Broker, home: Home) -> None:
    """Map a part of a shared memory object: once more where the whole is, elsewhere through our descriptor."""
    if home.vessel is vessel:
        vessel.batch.call(NR.MREMAP, home.address + vma.offset, 0, vma.end - vma.start, _MREMAP_MAYMOVE_FIXED,
                          vma.start, what="mapping shared memory")
        vessel.batch.call(NR.MPROTECT, vma.start, vma.end - vma.start, vma.protection)
    else:
        fd = broker.pull(vessel.batch, home.fd)
        vessel.batch.call(NR.MMAP, vma.start, vma.end - vma.start, vma.protection, _FIXED | _SHARED, fd, vma.offset,
                          what="mapping shared memory")
        vessel.batch.call(NR.CLOSE, fd)


def _by_file(plan: Plan) -> dict[tuple[int, bool], list[Vma]]:
    """Return the areas of each file by its objref and whether it must be open for writing.

    A shared area that is or could become writable (VM_MAYWRITE) needs that; any other must not have it.
    """
    areas: dict[tuple[int, bool], list[Vma]] = {}
    for vma in plan.vmas:
        if vma.kind in {VMA_PRIVATE_FILE, VMA_SHARED_FILE}:
            may_write = bool(vma.protection & _WRITE) or "mw" in vma.flags.split()
            areas.setdefault((vma.objref, vma.kind == VMA_SHARED_FILE and may_write), []).append(vma)
    return areas


def _map_shared(plan: Plan, vessel: Vessel, broker: Broker, homes: dict[int, Home]) -> None:
    """Map each shared memory object that has no home yet as a whole, where no area of the image will be."""
    used = {vma.objref for vma in plan.vmas if vma.kind == VMA_SHARED_MEMORY} - homes.keys()
    used -= {record.objref for record in plan.of(SysvMemory)}
    records = [record for record in plan.of(SharedMemory) if record.objref in used]
    whole = {record.objref: vessel.reserve(record.bytes) for record in records}
    unreserved = {vma.objref for vma in plan.vmas if "nr" in vma.flags.split()}
    for record in records:
        unreserving = _NORESERVE if record.objref in unreserved else 0
        vessel.batch.call(NR.MMAP, whole[record.objref], record.bytes, _READ_WRITE,
                          _FIXED_NOREPLACE | _SHARED | _ANONYMOUS | unreserving, -1, 0, what="making shared memory")
        vessel.flush()
    vessel.run()
    for record in records:
        start = whole[record.objref]
        where = f"/proc/{vessel.pid}/map_files/{start:x}-{start + record.bytes:x}"
        homes[record.objref] = Home(vessel, start, broker.hold(os.open(where, os.O_RDWR | os.O_CLOEXEC)))


def _flags(vma: Vma) -> int:
    flags = set(vma.flags.split())
    return (_FIXED | (_SHARED if vma.kind == VMA_SHARED_FILE else _PRIVATE)
            | (_ANONYMOUS if vma.kind == VMA_ANONYMOUS else 0)
            | (_GROWSDOWN | _STACK if "gd" in flags else 0) | (_NORESERVE if "nr" in flags else 0))


def fill(making: Making, first: Record | None, records: Iterable[Record], homes: Mapping[int, Home]) -> int:
    """Put the pages where they belong, as they stream in; return their bytes.

    Args:
        making: with all vessels, and the files that only the image has.
        first: of the memory records.
        records: the others.
        homes: of shared memory.

    Raises:
        ImageError: the stream is damaged or ends too early.
        RestartError: memory could not be written.
    """
    total = 0
    for record in ([first] if first else []):
        total += _write(making, record, homes)
    for record in records:
        total += _write(making, record, homes)
    return total


def _write(making: Making, record: Record, homes: Mapping[int, Home]) -> int:
    if isinstance(record, SharedPages) and record.objref in making.contents:
        _write_file(making, record)
        return record.data.nbytes
    if isinstance(record, SharedPages) and record.objref in making.segments:
        base = making.segments[record.objref].address
        process_write_runs(os.getpid(), _runs(record, base), record.data)
        return record.data.nbytes
    if isinstance(record, SharedPages):
        if isinstance(making.plan.objects[record.objref], FileContent):
            return record.data.nbytes  # of a file that stays as it is
        if record.objref not in homes:
            raise RestartError(f"nobody maps the shared memory object {record.objref} of the image")
        vessel, base = homes[record.objref].vessel, homes[record.objref].address
    elif isinstance(record, Pages):
        vessel, base = making.vessels[record.pid], 0
    else:
        raise RestartError(f"{type(record).__name__} among the memory of the image")
    runs = _runs(record, base)
    try:
        process_write_runs(vessel.pid, runs, record.data)
    except MemoryFault:  # part of it is not writable for the process itself
        vessel.memory.write_runs(runs, record.data)
    return record.data.nbytes


def _runs(record: Pages | SharedPages, base: int) -> list[tuple[int, int]]:
    return [(base + run.address, run.pages * PAGE_BYTES) for run in record.runs]


def _write_file(making: Making, record: SharedPages) -> None:
    """Write whole pages into a file, but for what is behind its end."""
    fd, size, at = making.contents[record.objref], making.plan.objects[record.objref].size, 0
    for run in record.runs:
        length = run.pages * PAGE_BYTES
        wanted = min(length, size - run.address)
        if os.pwrite(fd, record.data[at:at + wanted], run.address) != wanted:
            raise RestartError("there is no room for the content of a deleted file")
        at += length


def _lock(vma: Vma, batch: Batch) -> None:
    """Lock an area in memory; where it cannot be touched mlock(2) locks it and says ENOMEM."""
    on_fault = _MLOCK_ONFAULT if "lf" in vma.flags.split() else 0
    batch.call(NR.MLOCK2, vma.start, vma.end - vma.start, on_fault, check=bool(vma.protection),
               what=f"locking {vma.start:#x}")


def finish(plan: Plan, vessel: Vessel, broker: Broker, homes: Mapping[int, Home]) -> None:
    """Take away what only filling needed, give advice again, and set the fields of the memory map."""
    batch, memory = vessel.batch, plan.memory
    for objref, home in homes.items():
        if home.vessel is vessel:
            batch.call(NR.MUNMAP, home.address, plan.objects[objref].bytes)
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
