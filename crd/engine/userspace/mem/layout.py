"""The layout of an address space: its areas, the files behind them, and the fields of prctl(PR_SET_MM_MAP)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.engine.userspace.fds import regular
from crd.engine.userspace.mem import huge, sysv
from crd.engine.userspace.mem.runs import joined
from crd.engine.userspace.mem.shared import copy_shared
from crd.engine.userspace.objects import ObjectNumbers
from crd.errors import Obstacle, TargetUnsupported
from crd.image.objects import RegularFile, SharedMemory
from crd.image.profile import (
    PAGE_BYTES,
    VMA_ANONYMOUS,
    VMA_PRIVATE_FILE,
    VMA_SHARED_FILE,
    VMA_SHARED_MEMORY,
    MemoryLayout,
    Vma,
)
from crd.image.vdso import digest
from crd.target.paths import is_memory_with_a_name, name_left

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from crd.engine.userspace.capture import Capture
    from crd.engine.userspace.mem.runs import Run
    from crd.engine.userspace.mem.shared import Copied
    from crd.image.codec import Record
    from crd.image.sysv import SysvMemory
    from crd.native.memory import Memory
    from crd.target.procfs import MapEntry

KERNEL_AREAS = ("[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]", "[uprobes]")
_SHARED_MEMORY_NAMES = ("/dev/zero (deleted)", "[anon_shmem:")


def is_kernel_area(entry: MapEntry) -> bool:
    """Whether the kernel put the area there: it is found or moved, never dumped."""
    return entry.path in KERNEL_AREAS


def kind(entry: MapEntry) -> int:
    """Return VMA_*."""
    if not entry.is_file or (huge.is_anonymous(entry) and not entry.shared):
        return VMA_ANONYMOUS
    if entry.shared and (entry.path.startswith(_SHARED_MEMORY_NAMES) or huge.is_anonymous(entry)
                         or sysv.is_segment(entry)):
        return VMA_SHARED_MEMORY
    return VMA_SHARED_FILE if entry.shared else VMA_PRIVATE_FILE


class MappedObjects:
    """What the processes of a target have mapped, each object once.

    Attributes:
        numbers: gives out objrefs.
        files, memories: records by device and inode.
        segments: those of the memories that are System V's.
        copies: content of the shared memory, by device and inode.
        named: device and inode of shared memory that has a name (shm_open(3), sem_open(3)).
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.numbers = ObjectNumbers()
        self.files: dict[tuple[int, int], RegularFile] = {}
        self.memories: dict[tuple[int, int], SharedMemory] = {}
        self.segments: dict[tuple[int, int], SysvMemory] = {}
        self.copies: dict[tuple[int, int], Copied] = {}
        self.named: set[tuple[int, int]] = set()

    def note(self, pid: int, entry: MapEntry) -> None:
        """Copy the object behind a shared area of a process, unless that has been done: a snapshot does not hold it.

        One that has a name is copied with the files.
        """
        if kind(entry) != VMA_SHARED_MEMORY:
            if entry.shared and is_memory_with_a_name(entry.path):
                self.named.add((entry.device, entry.inode))
        elif (entry.device, entry.inode) not in self.copies:
            where = f"/proc/{pid}/map_files/{entry.start:x}-{entry.end:x}"
            self.copies[entry.device, entry.inode] = copy_shared(where)

    def memory_records(self) -> Iterator[Record]:
        """Return the records of shared memory, that of its segment behind each."""
        for identity, memory in self.memories.items():
            yield memory
            if segment := self.segments.get(identity):
                yield segment

    def object(self, entry: MapEntry, what: int) -> int:
        """Return the objref of what an area of kind ``what`` maps; 0 for anonymous memory.

        Raises:
            TargetUnsupported: a mapped file has no path any more, or shows another file.
        """
        identity = entry.device, entry.inode
        if what == VMA_ANONYMOUS:
            return 0
        if what == VMA_SHARED_MEMORY:
            if identity not in self.memories:
                size = self.copies[identity].bytes
                self.memories[identity] = SharedMemory(objref=self.numbers.new(), bytes=size + -size % PAGE_BYTES)
                if sysv.is_segment(entry):
                    self.segments[identity] = sysv.dump(self.memories[identity].objref, entry)
            return int(self.memories[identity].objref)
        if identity not in self.files:
            path = _path(entry)
            self.files[identity] = regular.dump(self.numbers.new(), path, _stat(entry, path))
        if what == VMA_PRIVATE_FILE:
            self.files[identity].mapped = True  # its content must stay what it was
        return int(self.files[identity].objref)


def _path(entry: MapEntry) -> str:
    """Return the name it was opened by, or another that is left of it."""
    return (entry.deleted and name_left(entry.path, entry.inode)) or entry.path


def _stat(entry: MapEntry, path: str) -> os.stat_result:
    try:
        found = os.stat(path)
    except OSError:
        found = None
    if found is None or found.st_ino != entry.inode:
        raise TargetUnsupported(reasons=[Obstacle(
            "map.file-gone", f"mapping {entry.start:#x} ({entry.path})", "the mapped file has no path any more",
            "Restart the program: its files were replaced while it ran.")])
    return found


@dataclass(frozen=True, slots=True)
class Layout:
    """The records of an address space, and its guard regions."""

    memory: MemoryLayout
    vmas: list[Vma]
    guards: list[Run]


def dump(captured: Capture, brk: int, flags: Mapping[int, str], guards: Sequence[Run],
         mapped: MappedObjects) -> Layout:
    """Describe the address space that a process had when it was stopped.

    Args:
        captured: of the process, at the stop.
        brk: the end of its heap.
        flags: VmFlags by start of the area.
        guards: guard regions of private memory.
        mapped: the objects of all processes.

    Raises:
        TargetUnsupported: a mapped file has no path any more, or shows another file.
    """
    vmas = []
    for entry in captured.entries:
        if not is_kernel_area(entry):
            what = kind(entry)
            vmas.append(Vma(kind=what, protection=entry.protection, start=entry.start, end=entry.end,
                            offset=entry.offset, objref=captured.unnamed.get(entry.start) or mapped.object(entry, what),
                            flags=flags.get(entry.start, ""),
                            name=entry.path if not entry.is_file else ""))
    return Layout(_memory(captured, brk), vmas, joined([*guards, *captured.known.guards]))


def _memory(captured: Capture, brk: int) -> MemoryLayout:
    stat = captured.stat
    vdso = next((entry for entry in captured.entries if entry.path == "[vdso]"), None)
    vvar = [entry for entry in captured.entries if entry.path.startswith("[vvar")]
    return MemoryLayout(
        start_code=stat.field(26), end_code=stat.field(27), start_data=stat.field(45), end_data=stat.field(46),
        start_brk=stat.field(47), brk=brk, start_stack=stat.field(28), arg_start=stat.field(48),
        arg_end=stat.field(49), env_start=stat.field(50), env_end=stat.field(51),
        auxv=captured.known.auxv, vdso_start=vdso.start if vdso else 0,
        vdso_bytes=vdso.end - vdso.start if vdso else 0, vvar_start=vvar[0].start if vvar else 0,
        vvar_bytes=sum(entry.end - entry.start for entry in vvar))


def vdso_digest(memory: Memory, start: int, length: int) -> bytes:
    """Return the digest of the vdso in an area; empty if there is no vdso."""
    return digest(memory.read(start, length)) if start else b""
