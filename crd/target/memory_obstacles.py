"""Obstacles in what a process has mapped."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from crd.errors import Obstacle, TargetError, TargetGone
from crd.target import huge_pages, procfs
from crd.target.paths import DELETED, Reach, is_shared_memory, name_left, reach
from crd.target.unnamed import is_unnamed
from crd.target.wording import process_names
from crd.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from crd.target.model import MapEntry

KERNEL_AREAS = {"[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]"}

_BY_FLAG = {  # of ``procfs.vm_flags``, proc_pid_smaps(5)
    "um": ("memory.userfaultfd", "is registered with a userfaultfd"),
    "ui": ("memory.userfaultfd", "is registered with a userfaultfd"),
    "ss": ("memory.shadow-stack", "is a shadow stack"),
    "pk": ("memory.protection-key", "has a protection key (pkeys(7)), without which it would be open to writes"),
    "sl": ("memory.sealed", "is sealed (mseal(2)), so it could not be placed again"),
    "io": ("memory.device", "maps a device"),
    "pf": ("memory.device", "maps a device"),
}
_BY_NAME = {  # of file systems that only the kernel mounts; the names end in " (deleted)"
    "/[aio]": ("memory.aio", "is the ring of an asynchronous I/O context (io_setup(2))"),
    "/secretmem": ("memory.secret", "is secret memory (memfd_secret(2)), which nobody else may read"),
    "anon_inode:[io_uring]": ("memory.io-uring", "is a ring of an io_uring"),
}
_REMEDY = "Run the program without this feature; this version of crd cannot save it."
_FILE_REMEDY = "Start the program again, so that it uses the file that is there now."


def mappings(pid: int, holders: Mapping[tuple[int, int], list[int]]) -> Iterator[Obstacle]:
    """Find mappings that crd cannot save, in the order of their addresses; each file once.

    Args:
        pid: of the process.
        holders: processes outside of the target that map shared memory, by device and inode.
    """
    flags = procfs.vm_flags(pid)
    shared: dict[tuple[int, int], MapEntry] = {}
    files: dict[tuple[int, int], MapEntry] = {}
    said: set[tuple[str, int, int]] = set()
    for entry in procfs.maps(pid):
        if entry.path in KERNEL_AREAS:
            continue
        if found := _kind(pid, entry, flags.get(entry.start, "")):
            code, reason = found
            what = (code, entry.device, entry.inode or entry.start)
            if what not in said:
                yield Obstacle(code, _name(entry), f"{reason}, which crd cannot save yet", _REMEDY)
            said.add(what)
        elif entry.path == huge_pages.ANONYMOUS and not entry.shared:
            continue
        elif is_shared_anonymous(entry):
            shared.setdefault((entry.device, entry.inode), entry)
        elif entry.is_file:
            files.setdefault((entry.device, entry.inode), entry)
    for entry in files.values():
        yield from _file(pid, entry)
        if is_shared_memory(entry):
            shared[entry.device, entry.inode] = entry
    yield from _shared(shared, holders)
    yield from _program(pid)


def _program(pid: int) -> Iterator[Obstacle]:
    """Find out whether the program's file is gone: /proc/PID/exe could lead nowhere."""
    link = procfs.read_link(pid, "exe")
    how = reach(link, procfs.link_stat(pid, "exe"))
    if how is not Reach.SAME:
        yield Obstacle("task.exe", f"program {printable(link)}", f"{how.value}, and crd cannot save it yet",
                       _FILE_REMEDY)


def is_shared_anonymous(entry: MapEntry) -> bool:
    """Whether it is MAP_SHARED | MAP_ANONYMOUS: the kernel makes it a deleted file of a file system of its own."""
    return entry.shared and entry.is_file and (entry.path in {"/dev/zero" + DELETED, huge_pages.ANONYMOUS} or
                                               entry.path.startswith("[anon_shmem:"))


def _name(entry: MapEntry) -> str:
    return f"mapping {entry.start:x}-{entry.end:x} ({printable(entry.path) or 'anonymous'})"


def _kind(pid: int, entry: MapEntry, flags: str) -> tuple[str, str] | None:
    if "ht" in flags.split() and (reason := huge_pages.hindrance(pid, entry)):
        return "memory.huge-pages", reason
    if entry.deleted or entry.path.startswith("anon_inode:"):
        for prefix, found in _BY_NAME.items():
            if entry.path.startswith(prefix):
                return found
    for flag in flags.split():
        if flag in _BY_FLAG:
            return _BY_FLAG[flag]
    if entry.is_file and not entry.path.startswith(("/", "[")):
        return "memory.device", "maps a kernel object"
    return None


def _file(pid: int, entry: MapEntry) -> Iterator[Obstacle]:
    file = None
    try:
        file = procfs.map_file_stat(pid, entry)
        link = procfs.map_file_link(pid, entry)
        how = reach(link, file)
        regular = stat.S_ISREG(file.st_mode)
    except TargetGone:  # unmapped meanwhile, or the process ended, which others notice
        return
    except TargetError:  # no CAP_CHECKPOINT_RESTORE
        link, how, regular = entry.path, _reach_by_maps(entry), True
    if not regular:
        yield Obstacle("memory.device", _name(entry), "maps a device, which crd cannot save yet", _REMEDY)
    elif how is Reach.UNLINKED and name_left(link, entry.inode):
        return
    elif how is not Reach.SAME and not (file and is_unnamed(file)):
        yield Obstacle(f"memory.{how.name.lower()}", f"mapped file {printable(entry.path)}",
                       f"{how.value}, and crd cannot save its content yet", _FILE_REMEDY)


def _reach_by_maps(entry: MapEntry) -> Reach:
    """Compare inodes alone: some file systems show another device number in maps than in stat."""
    try:
        if os.lstat(entry.path).st_ino == entry.inode:
            return Reach.SAME
    except (OSError, ValueError):
        pass
    return Reach.DELETED if entry.deleted else Reach.HIDDEN


def _shared(shared: dict[tuple[int, int], MapEntry],
            holders: Mapping[tuple[int, int], list[int]]) -> Iterator[Obstacle]:
    for key in shared.keys() & holders.keys():
        yield Obstacle("memory.shared", _name(shared[key]), f"is memory shared with {process_names(holders[key])}",
                       "Checkpoint it when the other process has ended.")
