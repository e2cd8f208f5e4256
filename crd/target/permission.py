"""Whether the kernel would let crd trace a process (ptrace(2), "Ptrace access mode checking")."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from crd.errors import TargetError, TargetGone
from crd.target import procfs

if TYPE_CHECKING:
    from crd.target.model import Status

CAP_SYS_PTRACE = 19
YAMA_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
_YAMA_NO_ATTACH = 3


def remedy() -> str:
    """Return what the operator can do about it."""
    if os.geteuid():
        return "Run crd as root, or let the daemon do it."
    return "Give crd the capabilities that the process has (CAP_SYS_PTRACE at least), or choose another process."


def why_denied(pid: int, statuses: dict[int, Status]) -> str | None:
    """Return why crd may not trace a process, or None if, as far as can be seen, it may."""
    scope = _yama_scope()
    if scope == _YAMA_NO_ATTACH:
        return "may not be traced by anybody (kernel.yama.ptrace_scope is 3)"
    if not procfs.status(os.getpid()).capabilities("Eff") >> CAP_SYS_PTRACE & 1:
        if (foreign := _foreign_uid(statuses)) is not None:
            return f"runs as uid {foreign}, which crd, as uid {os.getuid()}, may not trace"
        if scope:
            return f"may be traced only by its ancestors and by root (kernel.yama.ptrace_scope is {scope})"
    try:
        for look in (procfs.maps, procfs.fd_numbers, lambda subject: procfs.read_bytes(subject, "auxv")):
            look(pid)
    except TargetGone:
        raise
    except TargetError as error:
        return f"may not be looked at ({error.message}): it has privileges that crd lacks, or is not dumpable"
    return None


def _foreign_uid(statuses: dict[int, Status]) -> int | None:
    own = os.getuid()
    return next((uid for status in statuses.values() for uid in status.uids if uid != own), None)


def _yama_scope() -> int:
    try:
        return int(YAMA_SCOPE.read_text())
    except (OSError, ValueError):  # no Yama in this kernel
        return 0
