"""The freezer cgroup around a checkpoint (Documentation/cgroups/freezer-subsystem.txt; spec section 8.2).

A target's tasks are moved into a group of their own and frozen there; afterwards they are thawed and moved back, by the
guardian, so that they run on even if the worker is killed.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crd.engine.kernel.guardian import Guardian
from crd.errors import FeatureMissing, FreezeTimeout, TargetError, TargetGone
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX = "crd-"
_POLL_SECONDS = 0.002


def mounted(mounts: Path = Path("/proc/self/mounts")) -> Path:
    """Return where the freezer hierarchy is mounted.

    Raises:
        FeatureMissing: nowhere.
    """
    for line in mounts.read_text(errors="surrogateescape").splitlines():
        _device, path, kind, options, *_ = line.split(" ")
        if kind == "cgroup" and "freezer" in options.split(","):
            return Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path))
    raise FeatureMissing("the freezer cgroup is not mounted, and a Linux-CR kernel saves frozen tasks only",
                         hint="mount -t cgroup -o freezer freezer /sys/fs/cgroup/freezer, or where you have room.")


@contextmanager
def frozen(pid: int, root: Path, *, tree: bool = True, seconds: float = 2.0) -> Iterator[set[int]]:
    """Freeze a process and its descendants, whose pids are given; leaving the context thaws them where they were.

    Args:
        pid: of the process.
        root: of the freezer hierarchy.
        tree: with its descendants.
        seconds: how long freezing may take.

    Raises:
        TargetGone: the process has ended.
        FreezeTimeout: it could not be frozen in time.
        EngineError: it could not be thawed.
    """
    sweep(root)
    with Guardian(lambda told: _release(root, told)) as guardian:
        group = root / f"{_PREFIX}{guardian.pid}-{procfs.stat(guardian.pid).start_time}"
        guardian.tell(str(group))
        group.mkdir()
        deadline = time.monotonic() + seconds
        family = _gather(_Move(root, group, guardian), pid, tree=tree)
        while True:
            _freeze(group, pid, deadline)
            now = _family(pid, tree=tree)
            if now <= family:
                break
            (group / "freezer.state").write_text("THAWED")  # a child escaped into its parent's old group
            family = _gather(_Move(root, group, guardian), pid, tree=tree)
        yield now


@dataclass(frozen=True, slots=True)
class _Move:
    """Moves tasks into a group, and tells the guardian before where they were."""

    root: Path
    group: Path
    guardian: Guardian

    def threads(self, pid: int) -> None:
        """Move those of a process that are not there yet."""
        inside = set(_tasks(self.group))
        while new := [tid for tid in procfs.threads(pid) if tid not in inside]:
            for tid in new:
                inside.add(tid)
                with suppress(TargetGone, ProcessLookupError):
                    self.guardian.tell(f"{tid} {_home(tid)}")
                    (self.group / "tasks").write_text(str(tid))


def _home(tid: int) -> str:
    return next(path for controllers, path in procfs.cgroups(tid).items() if "freezer" in controllers.split(","))


def _family(pid: int, *, tree: bool) -> set[int]:
    """Return a process and its descendants, by everybody's parent: such kernels do not list children.

    Raises:
        TargetGone: the process has ended.
    """
    if procfs.stat(pid).state in "ZX":
        raise TargetGone(f"process {pid} has ended", pid=pid)
    children: dict[int, list[int]] = {}
    for other in procfs.pids() if tree else ():
        with suppress(TargetGone):
            stat = procfs.stat(other)
            if stat.state not in "ZX":
                children.setdefault(stat.parent_pid, []).append(other)
    family, new = {pid}, [pid]
    while new:
        new = [child for parent in new for child in children.get(parent, ()) if child not in family]
        family.update(new)
    return family


def _gather(move: _Move, pid: int, *, tree: bool) -> set[int]:
    """Move a family into the group; what is born there stays there."""
    known: set[int] = set()
    while new := (family := _family(pid, tree=tree)) - known:
        for member in new:
            try:
                move.threads(member)
            except TargetError:
                if member == pid:
                    raise
        known |= family
    return family


def _freeze(group: Path, pid: int, deadline: float) -> None:
    state = group / "freezer.state"
    while state.read_text().strip() != "FROZEN" or not _tasks(group):
        if not _tasks(group):
            raise TargetGone(f"process {pid} has ended", pid=pid)
        if time.monotonic() > deadline:
            raise FreezeTimeout(f"process {pid} could not be frozen in time", pid=pid,
                                hint="A task that waits for a disk cannot be; raise engine.freeze_timeout.")
        state.write_text("FROZEN")
        time.sleep(_POLL_SECONDS)


def _tasks(group: Path) -> list[int]:
    return [int(line) for line in (group / "tasks").read_text().split()]


def _release(root: Path, told: list[str]) -> None:
    """Thaw a group, move its tasks back to where they were, and remove it; the guardian's work."""
    group, *moves = told
    homes = dict(move.split(" ", 1) for move in moves)
    thaw(Path(group), root, homes)


def thaw(group: Path, root: Path, homes: dict[str, str]) -> None:
    """Thaw a group, move its tasks to their homes (those without one to the first task's), and remove it."""
    if not group.exists():
        return
    (group / "freezer.state").write_text("THAWED")
    otherwise = next(iter(homes.values()), "/")
    while tasks := _tasks(group):
        for tid in tasks:
            home = root / homes.get(str(tid), otherwise).lstrip("/")
            with suppress(ProcessLookupError):
                ((home if home.exists() else root) / "tasks").write_text(str(tid))
    group.rmdir()


def sweep(root: Path) -> None:
    """Thaw what guardians left that were killed with their workers."""
    for group in root.glob(f"{_PREFIX}*-*"):
        guardian, _, started = group.name.removeprefix(_PREFIX).partition("-")
        with suppress(OSError, ValueError):
            if not _runs(int(guardian), int(started)):
                thaw(group, root, {})


def _runs(pid: int, start_time: int) -> bool:
    try:
        return pid != os.getpid() and procfs.stat(pid).start_time == start_time
    except TargetGone:
        return False
