"""What is left of a call in the process that carried it out: nothing, or the process is not to carry out another."""

from __future__ import annotations

import os
import resource
import signal
from typing import Any

from crd.errors import TargetError, TargetGone
from crd.target import procfs

_WALL = 0x4000_0000
"""Of waitpid(2): children that tell of their end by another signal, and tracees, too."""
_GROWTH_BYTES_MAX = 64 << 20
_STATUS = ("Umask", "PPid", "TracerPid", "Uid", "Gid", "Groups", "NSpid", "NSsid", "Threads", "ShdPnd", "SigPnd",
           "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp",
           "VmLck", "VmPin")
_LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_CORE, resource.RLIMIT_RTPRIO)
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


class Leftovers:
    """Compares this process, which has one thread, with what it was."""

    def __init__(self) -> None:
        """Nothing is left yet."""
        self._before, self._bytes = _look()

    def found(self) -> list[str]:
        """Return what is not as it was, by name; "memory" if it has grown by much, "unknown" if that cannot be told."""
        try:
            now, size = _look()
        except (OSError, TargetError):
            return ["unknown"]
        changed = [name for name, value in now.items() if value != self._before[name]]
        return changed + ["memory"] * (size - self._bytes > _GROWTH_BYTES_MAX)


def _look() -> tuple[dict[str, Any], int]:
    """Return what may differ, by name, and the bytes of address space."""
    status = procfs.status("self")
    found: dict[str, Any] = {name: status.get(name) for name in _STATUS}
    found["descriptors"] = _descriptors()
    found["children"] = _has_children()
    found["namespaces"] = procfs.namespaces("self")
    found["directories"] = [procfs.read_link("self", name) for name in ("cwd", "root")]
    found["scheduling"] = (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority, os.sched_getaffinity(0),
                           os.getpriority(os.PRIO_PROCESS, 0))
    found["limits"] = [resource.getrlimit(limit) for limit in _LIMITS]
    found["timers"] = [signal.getitimer(timer) for timer in _TIMERS]
    return found, int(status["VmSize"].split()[0]) << 10


def _descriptors() -> dict[int, str]:
    """Return what is open, but for what it is read by."""
    found = {}
    for fd in procfs.fd_numbers("self"):
        try:
            found[fd] = procfs.read_link("self", f"fd/{fd}")
        except TargetGone:
            continue
    return found


def _has_children() -> bool:
    """Whether there are any, ended or not."""
    try:
        os.waitpid(-1, os.WNOHANG | _WALL)
    except ChildProcessError:
        return False
    return True
