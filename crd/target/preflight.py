"""Everything that would keep a process and its descendants from being checkpointed, found without stopping anybody.

What holds for one moment may not hold for the next: the engine looks again at what it captures.  Not visible from
outside, and so not found: Landlock domains, security labels, and pipe ends in processes that crd may not look at.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from crd.errors import Obstacle, TargetError, TargetGone, TargetNotFound
from crd.target import file_obstacles, memory_obstacles, permission, procfs, task_obstacles, unix_obstacles
from crd.target.holders import Holders
from crd.target.model import CheckReport
from crd.target.tree import Family
from crd.target.wording import process_name
from crd.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.target.task_obstacles import Kcmp

PID_MAX = 2**22
"""PID_MAX_LIMIT of 64-bit kernels."""


def check(pid: int, *, kcmp: Kcmp | None = None, tree: bool = True) -> CheckReport:
    """Return what ``obstacles`` finds, with the name of the process and what is to be said beside.

    Raises:
        TargetNotFound: there is no such process.
        TargetGone: it ended meanwhile.
    """
    comm = _find(pid)
    found = obstacles(pid, kcmp=kcmp, tree=tree)
    notes: list[str] = []
    for member in Family(pid, descendants=tree):
        with suppress(TargetError):  # it has ended, or is not ours to look at
            notes += unix_obstacles.notes(member)
    return CheckReport(pid, printable(comm), found, tuple(notes))


def obstacles(pid: int, *, kcmp: Kcmp | None = None, tree: bool = True, waiting: int = 0,
              left_out: tuple[int, int] | None = None) -> tuple[Obstacle, ...]:
    """Return all that stands in the way of a checkpoint, the most important first, process by process.

    Args:
        pid: the process.
        kcmp: kcmp(2), such as ``crd.native.syscall.kcmp``; without it sharing between processes goes unseen.
        tree: its descendants are to be saved, too.
        waiting: a thread that waits for this checkpoint, and for nothing else.
        left_out: a pid and a descriptor of it that is not to be saved.

    Raises:
        TargetNotFound: there is no such process.
        TargetGone: it ended meanwhile.
    """
    _find(pid)
    if fatal := task_obstacles.fatal(pid):
        return (fatal,)
    members = Family(pid, descendants=tree)
    found: dict[int, list[Obstacle]] = {member: [] for member in members}
    found[pid] += task_obstacles.kinship(pid)
    holders = Holders.outside(members)
    for member in members:
        try:
            found[member] += _all(member, members, holders, kcmp, waiting=waiting, left_out=left_out)
        except TargetGone:
            if member == pid:
                raise
    if kcmp is not None:
        for member, obstacle in task_obstacles.sharing(members, kcmp):
            found[member].append(obstacle)
    return tuple(_of_whom(obstacle, member, pid) for member, listed in found.items() for obstacle in listed)


def _of_whom(obstacle: Obstacle, member: int, root: int) -> Obstacle:
    """Say of an obstacle in a descendant whose it is."""
    name = process_name(member)
    if member == root or obstacle.object.startswith(name):
        return obstacle
    return replace(obstacle, object=f"{name}, {obstacle.object}")


def _find(pid: int) -> str:
    try:
        if 0 < pid <= PID_MAX:
            return procfs.stat(pid).comm
    except TargetGone:
        pass
    raise TargetNotFound(f"there is no process {pid}", pid=pid, hint="ps -e lists the processes there are.")


def _all(pid: int, members: Family, holders: Holders, kcmp: Kcmp | None, *, waiting: int,
         left_out: tuple[int, int] | None) -> Iterator[Obstacle]:
    statuses = task_obstacles.thread_statuses(pid)
    tids = list(statuses)
    yield from task_obstacles.tracing(statuses)
    if reason := permission.why_denied(pid, statuses):
        yield Obstacle("task.denied", process_name(pid), reason, permission.remedy())
        return
    yield from task_obstacles.architecture(pid)
    yield from task_obstacles.freezing(pid, {tid: status for tid, status in statuses.items() if tid != waiting})
    yield from task_obstacles.confinement(statuses)
    yield from task_obstacles.namespaces(pid, tids)
    if kcmp is not None:
        yield from task_obstacles.loners(pid, tids, kcmp)
    yield from file_obstacles.descriptors(pid, members, holders.pipes, kcmp, left_out)
    yield from file_obstacles.working_directory(pid)
    yield from memory_obstacles.mappings(pid, holders.memories)
