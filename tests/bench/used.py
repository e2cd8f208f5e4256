"""What saving memory takes: time, and CPU time, which says more while a machine is busy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from crd.target import procfs

_UTIME, _CSTIME = 14, 17
"""Fields of stat (proc_pid_stat(5)): own and of those waited for, in user and kernel mode."""


@dataclass(frozen=True)
class Used:
    """What it took to save so many bytes of memory."""

    size: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """MiB a second."""
        return self.size / self.seconds / 2**20

    @property
    def cpu(self) -> float:
        """Seconds of CPU a GiB."""
        return self.cpu_seconds / self.size * 2**30


def cpu_seconds() -> float:
    """Return what we, our children and theirs that have ended have used: workers are waited for by their nursery.

    What a snapshot child used, 0.2 s a GiB, is nobody's: it is the child of none of these.
    """
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    ticks = sum(procfs.stat(int(pid)).field(number) for pid in children for number in range(_UTIME, _CSTIME + 1))
    return sum(os.times()[:4]) + ticks / os.sysconf("SC_CLK_TCK")
