"""Cgroup hierarchies as far as preflight needs them: where they are mounted, and what is frozen."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from crd.errors import TargetError
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator

_OCTAL = re.compile(r"\\([0-7]{3})")


def frozen_cgroup(pid: int) -> str | None:
    """Return the path of the frozen cgroup that the process is in, version 2 or 1, or None."""
    try:
        paths = procfs.cgroups(pid)
    except TargetError:
        return None
    for controllers, path in paths.items():
        kind = "cgroup2" if controllers == "" else "cgroup"
        if kind == "cgroup" and "freezer" not in controllers.split(","):
            continue
        for mount_point in _mount_points(kind):
            if _is_frozen(mount_point, path):
                return path
    return None


def _is_frozen(mount_point: Path, path: str) -> bool:
    if ".." in PurePosixPath(path).parts:  # outside our cgroup namespace
        return False
    directory = mount_point / path.lstrip("/")
    return (_line_in(directory / "cgroup.events", "frozen 1")
            or _line_in(directory / "freezer.state", "FROZEN") or _line_in(directory / "freezer.state", "FREEZING"))


def _line_in(file: Path, line: str) -> bool:
    try:
        return line in file.read_text(errors="replace").split("\n")
    except OSError:  # the root cgroup has no such file
        return False


def _mount_points(kind: str) -> Iterator[Path]:
    """Return where hierarchies of one kind are mounted; of version 1 only the freezer's (proc_pid_mountinfo(5))."""
    for line in procfs.read("self", "mountinfo").split("\n")[:-1]:
        left, _, right = line.partition(" - ")
        filesystem, _source, options = right.split(" ", 2)
        if filesystem == kind and (kind == "cgroup2" or "freezer" in options.split(",")):
            yield Path(_OCTAL.sub(lambda match: chr(int(match[1], 8)), left.split(" ")[4]))
