"""What differs between two images of crd's profile: tasks, memory by mapping, open files.

A process is the same in both if its pid is, or if it is the first of each: a restart may have given it another.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from crd.image.memory_difference import MemoryDifference

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from crd.image.inspection import FileEntry, Inspection, MemoryEntry
    from crd.image.memory_difference import Compare, Memory, MemoryChange


class TaskState(NamedTuple):
    """A process: its name, and how many threads it has."""

    comm: str
    threads: int


class TaskChange(NamedTuple):
    """A process that is gone, is new, or has another name or other threads."""

    pid: int
    before: TaskState | None
    after: TaskState | None
    threads_gone: int
    threads_new: int


class OpenFile(NamedTuple):
    """What a descriptor is open on; flags as of F_GETFL, position in bytes."""

    path: str
    flags: int | None
    position: int | None


class FileChange(NamedTuple):
    """A descriptor that is closed, is new, or is open on something else, or elsewhere in it."""

    pid: int
    fd: int
    before: OpenFile | None
    after: OpenFile | None


@dataclass(frozen=True, slots=True)
class Side:
    """One of two images.

    Attributes:
        front: what it holds, up to its first page.
        root: pid of its first process.
        memory: where its pages are.
    """

    front: Inspection
    root: int
    memory: Memory


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs.

    Attributes:
        memory: those mappings that are not as they were, the most pages first.
        equal_pages: that both images have in the same place, with the same content.
    """

    tasks: list[TaskChange]
    memory: list[MemoryChange]
    files: list[FileChange]
    equal_pages: int


def difference(before: Side, after: Side, compare: Compare) -> Difference:
    """Return what differs between two images; ``compare`` compares their pages."""
    old, new = _processes(before.front), _processes(after.front)
    pairs = _pairs(old, new, before.root, after.root)
    walk = MemoryDifference(before.memory, after.memory, compare)
    ours, theirs = _areas(before.front), _areas(after.front)
    for one, other in pairs:
        walk.process((one, other), ours.get(one, []), theirs.get(other, []))
    walk.shared()
    memory = [change for change in walk.changes if change.pages or change.before != change.after]
    memory.sort(key=lambda change: (-change.pages, change.pid, (change.after or change.before or (0,))[0]))
    return Difference(list(_tasks(old, new, pairs)), memory, list(_files(before.front, after.front, pairs)),
                      walk.equal_pages)


@dataclass(slots=True)
class _Process:
    comm: str
    tids: set[int]

    @property
    def state(self) -> TaskState:
        return TaskState(self.comm, len(self.tids))


def _processes(front: Inspection) -> dict[int, _Process]:
    """Return processes by pid, each with the name of its first thread."""
    found: dict[int, _Process] = {}
    for task in front.tasks:
        process = found.setdefault(task.thread_group or 0, _Process(task.comm, set()))
        process.tids.add(task.pid or 0)
        if task.pid == task.thread_group:
            process.comm = task.comm
    return found


def _pairs(old: Mapping[int, _Process], new: Mapping[int, _Process], old_root: int,
           new_root: int) -> list[tuple[int, int]]:
    """Return the pids of each process in both images, 0 where it is not."""
    same = {pid: pid for pid in old.keys() & new.keys()}
    if old_root in old.keys() - new.keys() and new_root in new.keys() - old.keys():
        same[old_root] = new_root
    return sorted([*same.items(), *((pid, 0) for pid in old.keys() - same.keys()),
                   *((0, pid) for pid in new.keys() - set(same.values()))])


def _tasks(old: Mapping[int, _Process], new: Mapping[int, _Process],
           pairs: list[tuple[int, int]]) -> Iterator[TaskChange]:
    for one, other in pairs:
        was, now = old.get(one), new.get(other)
        tids = was.tids - {one} if was else set(), now.tids - {other} if now else set()  # the first has the pid
        change = TaskChange(other or one, was.state if was else None, now.state if now else None,
                            len(tids[0] - tids[1]), len(tids[1] - tids[0]))
        if change.threads_gone or change.threads_new or change.before != change.after:
            yield change


def _areas(front: Inspection) -> dict[int, list[MemoryEntry]]:
    areas: dict[int, list[MemoryEntry]] = defaultdict(list)
    for entry in sorted(front.memory, key=lambda entry: entry.start):
        areas[entry.pid or 0].append(entry)
    return areas


def _files(before: Inspection, after: Inspection, pairs: list[tuple[int, int]]) -> Iterator[FileChange]:
    pids = {one: other for one, other in pairs if one and other}
    ours = {(pids.get(file.pid or 0, file.pid or 0), file.fd): _open_file(file) for file in before.files}
    theirs = {(file.pid or 0, file.fd): _open_file(file) for file in after.files}
    for pid, fd in sorted(ours.keys() | theirs.keys()):
        was, now = ours.get((pid, fd)), theirs.get((pid, fd))
        if was != now:
            yield FileChange(pid, fd, was, now)


def _open_file(entry: FileEntry) -> OpenFile:
    return OpenFile(entry.path, entry.flags, entry.position)
