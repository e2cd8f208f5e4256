"""The layout of an address space: its areas, the files behind them, and the fields of prctl(PR_SET_MM_MAP)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

from crd.engine.userspace.fds import regular
from crd.errors import Obstacle, TargetUnsupported
from crd.image.objects import RegularFile, SharedMemory
from crd.image.profile import VMA_ANONYMOUS, VMA_PRIVATE_FILE, VMA_SHARED_FILE, VMA_SHARED_MEMORY, MemoryLayout, Vma
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crd.engine.userspace.mem.pages import Copied
    from crd.engine.userspace.objects import ObjectNumbers
    from crd.native.memory import Memory
    from crd.target.procfs import MapEntry, Stat

KERNEL_AREAS = ("[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]", "[uprobes]")
_SHARED_MEMORY_NAMES = ("/dev/zero (deleted)", "[anon_shmem:")


def is_kernel_area(entry: MapEntry) -> bool:
    """Whether the kernel put the area there: it is found or moved, never dumped."""
    return entry.path in KERNEL_AREAS


def kind(entry: MapEntry) -> int:
    """Return VMA_*."""
    if not entry.is_file:
        return VMA_ANONYMOUS
    if entry.shared and entry.path.startswith(_SHARED_MEMORY_NAMES):
        return VMA_SHARED_MEMORY
    return VMA_SHARED_FILE if entry.shared else VMA_PRIVATE_FILE


@dataclass(slots=True)
class Layout:
    """The records of an address space; ``shared`` by device and inode."""

    memory: MemoryLayout
    files: list[RegularFile] = field(default_factory=list)
    shared: dict[tuple[int, int], SharedMemory] = field(default_factory=dict)
    vmas: list[Vma] = field(default_factory=list)


def dump(pid: int, entries: Sequence[MapEntry], stat: Stat, brk: int, flags: Mapping[int, str],
         shared: Mapping[tuple[int, int], Copied], unnamed: Mapping[int, int], objects: ObjectNumbers) -> Layout:
    """Describe the address space that a process had when it was stopped.

    Args:
        pid: of the process; only its auxiliary vector is read now.
        entries: its maps at the stop.
        stat: its stat at the stop.
        brk: the end of its heap.
        flags: VmFlags by start of the area.
        shared: the shared objects that were copied, by device and inode.
        unnamed: the objrefs of files that no name leads to, by start of the area.
        objects: gives out objrefs.

    Raises:
        TargetUnsupported: a mapped file has no path any more, or shows another file.
    """
    layout = Layout(_memory(pid, entries, stat, brk))
    known: dict[tuple[int, int], int] = {}
    files: dict[int, RegularFile] = {}
    for entry in entries:
        if is_kernel_area(entry):
            continue
        what = kind(entry)
        objref = 0
        if entry.start in unnamed:
            objref = unnamed[entry.start]
        elif what != VMA_ANONYMOUS:
            identity = (entry.device, entry.inode)
            if identity not in known:
                known[identity] = objects.new()
                _add_object(layout, entry, what, known[identity], shared)
                files = {record.objref: record for record in layout.files}
            objref = known[identity]
            if what == VMA_PRIVATE_FILE:
                files[objref].mapped = True  # its content must stay what it was
        layout.vmas.append(Vma(kind=what, protection=entry.protection, start=entry.start, end=entry.end,
                               offset=entry.offset, objref=objref, flags=flags.get(entry.start, ""),
                               name=entry.path if what == VMA_ANONYMOUS else ""))
    return layout


def _memory(pid: int, entries: Sequence[MapEntry], stat: Stat, brk: int) -> MemoryLayout:
    vdso = next((entry for entry in entries if entry.path == "[vdso]"), None)
    vvar = [entry for entry in entries if entry.path.startswith("[vvar")]
    return MemoryLayout(
        start_code=stat.field(26), end_code=stat.field(27), start_data=stat.field(45), end_data=stat.field(46),
        start_brk=stat.field(47), brk=brk, start_stack=stat.field(28), arg_start=stat.field(48),
        arg_end=stat.field(49), env_start=stat.field(50), env_end=stat.field(51),
        auxv=procfs.read_bytes(pid, "auxv"), vdso_start=vdso.start if vdso else 0,
        vdso_bytes=vdso.end - vdso.start if vdso else 0, vvar_start=vvar[0].start if vvar else 0,
        vvar_bytes=sum(entry.end - entry.start for entry in vvar))


def _add_object(layout: Layout, entry: MapEntry, what: int, objref: int,
                shared: Mapping[tuple[int, int], Copied]) -> None:
    if what == VMA_SHARED_MEMORY:
        identity = (entry.device, entry.inode)
        layout.shared[identity] = SharedMemory(objref=objref, bytes=shared[identity].bytes)
        return
    try:
        found = os.stat(entry.path)
    except OSError:
        found = None
    if found is None or found.st_ino != entry.inode:
        raise TargetUnsupported(reasons=[Obstacle(
            "map.file-gone", f"mapping {entry.start:#x} ({entry.path})", "the mapped file has no path any more",
            "Restart the program: its files were replaced while it ran.")])
    layout.files.append(regular.dump(objref, entry.path, found))


def vdso_digest(memory: Memory, start: int, length: int) -> bytes:
    """Return a digest of the vdso's ELF image; what lies behind its section headers is padding, or a stub of ours.

    Empty if there is no vdso.
    """
    if not start:
        return b""
    image = memory.read(start, length)
    headers = int.from_bytes(image[40:48], "little")
    size, count = int.from_bytes(image[58:60], "little"), int.from_bytes(image[60:62], "little")
    end = min(headers + size * count, length)
    return blake2b(image[:end], digest_size=32).digest()
