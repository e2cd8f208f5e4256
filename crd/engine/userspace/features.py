"""What this kernel and these privileges offer, found out by doing."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.engine.userspace.fds.network_hold import Hold
from crd.errors import CrdError, FeatureMissing
from crd.native import tracee, tracking
from crd.native.memory import process_read_runs
from crd.native.pagemap import PageMap
from crd.native.syscall import NR, kcmp, pidfd_getfd, syscall
from crd.native.vessel import spawn_vessel
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Callable

_CAP_SYS_PTRACE = 19


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that may be there or not.

    Attributes:
        name: stable; also the label of a metric.
        what: it is.
        available: whether it is there.
        without: what crd does without it.
    """

    name: str
    what: str
    available: bool
    without: str


def features() -> list[Feature]:
    """Try everything once."""
    return [Feature(name, what, _works(probe), without) for name, what, probe, without in _PROBES]


def _works(probe: Callable[[], object]) -> bool:
    try:
        probe()
    except (CrdError, OSError):
        return False
    return True


def _trace() -> None:
    pid = spawn_vessel()
    try:
        tracee.seize(pid, tracee.OPTION_EXITKILL)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _trace_others() -> None:
    if not procfs.status("self").numbers("CapEff", 16)[0] >> _CAP_SYS_PTRACE & 1:
        raise FeatureMissing


def _read_memory() -> None:
    readable = next(entry for entry in procfs.maps("self") if entry.permissions.startswith("r"))
    process_read_runs(os.getpid(), [(readable.start, 8)], bytearray(8))


def _choose_pid() -> None:
    pid = spawn_vessel()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    again = spawn_vessel(pid)
    os.kill(again, signal.SIGKILL)
    os.waitpid(again, 0)


def _scan() -> None:
    with PageMap(os.getpid()) as pagemap:
        pagemap.scan_once()


def _note_writes() -> None:
    fd = syscall(NR.USERFAULTFD, tracking.FLAGS)
    try:
        tracking.begin(fd)
    finally:
        os.close(fd)


def _borrow() -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        os.close(pidfd_getfd(pidfd, pidfd))
    finally:
        os.close(pidfd)


def _realtime() -> None:
    before, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    with suppress(OSError):
        os.sched_setscheduler(0, before, parameter)


def _time_namespace() -> None:
    os.stat("/proc/self/ns/time_for_children")


def _map_files() -> None:
    name = next(iter(os.listdir("/proc/self/map_files")))
    os.stat(f"/proc/self/map_files/{name}")


def _hold() -> None:
    Hold().close()


def _timer_ids() -> None:
    syscall(NR.PRCTL, 77, 2, 0, 0, 0)


_PROBES: list[tuple[str, str, Callable[[], object], str]] = [
    ("ptrace", "tracing processes (PTRACE_SEIZE)", _trace, "nothing can be checkpointed"),
    ("ptrace_others", "tracing processes of other users (CAP_SYS_PTRACE)", _trace_others,
     "only processes of the same user, with no privileges of their own, can be checkpointed"),
    ("process_vm", "reading memory in bulk (process_vm_readv)", _read_memory, "/proc/PID/mem is read instead"),
    ("set_tid", "choosing pids (clone3 with set_tid, 5.5)", _choose_pid, "only restarts with --new-pids"),
    ("pidfd_getfd", "borrowing descriptors (pidfd_getfd, 5.6)", _borrow, "nothing with open files can be checkpointed"),
    ("kcmp", "comparing kernel objects (kcmp)", lambda: kcmp(os.getpid(), os.getpid(), 0, 0, 0),
     "shared descriptions are not found: refused"),
    ("map_files", "mapped files by address (/proc/PID/map_files)", _map_files,
     "shared anonymous memory cannot be checkpointed"),
    ("pagemap_scan", "finding pages quickly (PAGEMAP_SCAN, 6.7)", _scan, "/proc/PID/pagemap is read entry by entry"),
    ("note_writes", "noting what is written (userfaultfd with asynchronous write protection, 6.7)", _note_writes,
     "every image takes the reading of all memory"),
    ("sched_fifo", "real-time priority while a target is stopped", _realtime, "stops of busy targets take longer"),
    ("time_namespace", "clocks that go on in a pid namespace (5.6)", _time_namespace, "--pidns is refused"),
    ("network_hold", "holding connections of TCP for a restart (nf_tables, CAP_NET_ADMIN)", _hold,
     "connections to other processes are over after a restart"),
    ("timer_ids", "choosing the numbers of POSIX timers (6.15)", _timer_ids,
     "images with POSIX timers cannot be restarted"),
]

