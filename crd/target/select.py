"""From what the operator configured to the one process it means."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from crd.errors import BadRequest, TargetAmbiguous, TargetError, TargetGone, TargetNotFound
from crd.target import procfs
from crd.target.model import Process
from crd.target.wording import process_names
from crd.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_PID_FILE = re.compile(rb"\s*([1-9][0-9]{0,6})\s*")
_PID_FILE_BYTES = 64
_COMM_EXPRESSION_CHARACTERS = 200
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def by_pid(pid: int) -> Process:
    """Return the process of that number.

    Raises:
        TargetNotFound: there is none, or it is a zombie.
    """
    found = _process(pid) if pid > 0 else None
    if found is None:
        raise TargetNotFound(f"there is no process {pid}", pid=pid, hint="ps -e lists the processes there are.")
    return found


def by_key(pid: int, start_time: int) -> Process:
    """Return the process of that number that was started at that time (field 22 of its stat, proc(5)).

    Raises:
        TargetNotFound: it is no more.
    """
    found = by_pid(pid)
    if found.start_time != start_time:
        raise TargetNotFound(f"process {pid} is another one by now", pid=pid)
    return found


def by_comm(expression: str) -> Process:
    """Return the only user process whose whole name (comm, at most 15 bytes) matches a regular expression.

    crd itself is left out.

    Raises:
        BadRequest: this is no regular expression.
        TargetNotFound: no name matches.
        TargetAmbiguous: several do; the message lists them.
    """
    if len(expression) > _COMM_EXPRESSION_CHARACTERS:
        raise BadRequest(f"the expression is longer than {_COMM_EXPRESSION_CHARACTERS} characters")
    try:
        pattern = re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadRequest(f"{expression!r} is not a regular expression: {error}") from error
    found = [process for pid in sorted(procfs.pids()) if pid != os.getpid() and (process := _process(pid))
             and pattern.fullmatch(process.comm)]
    if not found:
        raise TargetNotFound(f"no process has a name that matches {expression!r}",
                             hint="The whole name must match; the kernel keeps 15 bytes of it (ps -o comm).")
    if len(found) > 1:
        pids = [process.pid for process in found]
        raise TargetAmbiguous(f"{len(found)} processes match {expression!r}: {process_names(pids, 20)}",
                              hint="Name one by its pid or a pid file.", pids=pids)
    return found[0]


def by_unit(name: str) -> Process:
    """Return the process, with all others for descendants, that a unit of the system's manager runs (systemd.unit(5)).

    Raises:
        TargetNotFound: the unit runs none.
        TargetAmbiguous: it runs several that do not descend from one of them; the message lists them.
    """
    found = _first_process(lambda path: _is_in_unit(path, name), f"unit {name}")
    if found is None:
        raise TargetNotFound(f"no process runs in unit {name}", hint=f"systemctl status {name} says what it does.")
    return found


def by_cgroup(path: str) -> Process:
    """Return the process, with all others for descendants, of a control group and those below it (cgroups(7)).

    Args:
        path: as /proc/PID/cgroup has it.

    Raises:
        TargetNotFound: there is none.
        TargetAmbiguous: there are several that do not descend from one of them; the message lists them.
    """
    found = _first_process(lambda other: f"{other}/".startswith(f"{path}/"), f"control group {path}")
    if found is None:
        raise TargetNotFound(f"no process runs in control group {path}",
                             hint="Its path is that from /proc/PID/cgroup; systemd-cgls lists the groups.")
    return found


def _is_in_unit(path: str, name: str) -> bool:
    """Whether a control group belongs to a unit: those of the system's manager lie in slices and nothing else."""
    before, found, _ = f"{path}/".partition(f"/{name}/")
    return bool(found) and all(part.endswith(".slice") for part in before.split("/")[1:])


def unit_of(pid: int) -> str:
    """Return the unit of the system's manager that a process belongs to, "" if it is in none; raises TargetGone."""
    for path in procfs.cgroups(pid).values():
        unit = next((part for part in path.split("/")[1:] if not part.endswith(".slice")), "")
        if unit.endswith((".service", ".scope")):
            return unit
    return ""


def _first_process(belongs: Callable[[str], bool], where: str) -> Process | None:
    found: dict[int, Process] = {}
    for pid in procfs.pids():
        with suppress(TargetGone):
            if any(map(belongs, procfs.cgroups(pid).values())) and (process := _process(pid)):
                found[pid] = process
    first = [process for process in found.values() if _parent(process.pid) not in found]
    if len(first) > 1:
        pids = sorted(process.pid for process in first)
        raise TargetAmbiguous(f"{len(first)} processes run in {where}, none of them under another: "
                              f"{process_names(pids, 20)}", hint="Name one by its pid or a pid file.", pids=pids)
    return first[0] if first else None


def _parent(pid: int) -> int:
    with suppress(TargetGone):
        return procfs.stat(pid).parent_pid
    return 0


def by_pid_file(path: Path) -> Process:
    """Return the process that a pid file names.

    The file must be a regular file, no symbolic link (directories above it may be), that only its owner may write; the
    owner must be root, the user crd runs as, or the user of the process.

    Raises:
        TargetNotFound: there is no such file, or no such process any more.
        TargetError: the file is not to be trusted, or does not hold one number.
    """
    content, owner = _read_pid_file(path)
    number = _PID_FILE.fullmatch(content)
    if number is None or len(content) > _PID_FILE_BYTES:
        raise TargetError(f"{path} does not hold one pid", path=str(path),
                          hint="A pid file holds one decimal number and nothing else.")
    pid = int(number[1])
    found = _process(pid)
    if found is None:
        raise TargetNotFound(f"{path} names process {pid}, which does not exist", pid=pid, path=str(path),
                             hint="The pid file is stale: its program has ended.")
    if owner not in {0, os.geteuid(), found.uid}:
        raise TargetError(f"{path} belongs to uid {owner} but names a process of uid {found.uid}", path=str(path),
                          hint="It must belong to root, or to the user of the process.")
    return found


def _read_pid_file(path: Path) -> tuple[bytes, int]:
    """Return the content (no more than tells that it is too long) and the owner."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise TargetNotFound(f"there is no pid file {path}", path=str(path),
                             hint="Has the program been started?") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TargetError(f"pid file {path}: {reason}", path=str(path),
                          hint="It must be a readable regular file, not a symbolic link.") from error
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or about.st_mode & _WRITABLE_BY_OTHERS:
            raise TargetError(f"pid file {path} is no regular file, or others than its owner may write it",
                              path=str(path), hint=f"chmod go-w {path}")
        return os.read(fd, _PID_FILE_BYTES + 1), about.st_uid
    finally:
        os.close(fd)


def _process(pid: int) -> Process | None:
    """Return a user process that is alive, or None."""
    try:
        about, status = procfs.stat(pid), procfs.status(pid)
    except TargetGone:
        return None
    if about.is_kernel_thread or about.state in "ZX" or status.process_id != pid:
        return None
    return Process(pid, about.start_time, printable(about.comm), status.uids[1])
