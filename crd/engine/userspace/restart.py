"""One restart: read and check the plan, make a vessel into the task, fill its memory from the stream, let it go."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from crd.engine.api import Pids, RestartOptions, RestartResult
from crd.engine.userspace import credentials, limits, threads
from crd.engine.userspace.broker import Broker
from crd.engine.userspace.fds import placement
from crd.engine.userspace.mem import restore
from crd.engine.userspace.namespace import restart_inside
from crd.engine.userspace.plan import check, read_plan
from crd.engine.userspace.sig import actions, pending
from crd.engine.userspace.timers import interval, posix
from crd.engine.userspace.vessel import Vessel
from crd.image.reader import ImageReader
from crd.image.verify import verified
from crd.native.syscall import NR
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crd.engine.userspace.plan import Plan
    from crd.image.codec import Record
    from crd.image.framing import Source

_PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER, _PR_SET_THP_DISABLE = 4, 36, 41
_DUMPABLE_SETTABLE = {0, 1}


class Restart:
    """An image being restarted: ``plan`` is known and checked, nothing is made yet."""

    def __init__(self, source: Source, options: RestartOptions) -> None:
        """Read and check what is to be made.

        Raises:
            ImageError: the image is damaged.
            RestartError, AccessDenied: it cannot be restarted here; see ``plan.check``.
        """
        self._started = time.monotonic()
        self._options = options
        self._records: Iterator[Record] = verified(ImageReader(source))
        self.plan, self._first = read_plan(self._records)
        check(self.plan, options)

    def run(self, confirm: Callable[[RestartResult], None] | None) -> RestartResult:
        """Make the task, in a namespace of its own if asked for, and let it go; see ``make``."""
        if self._options.pids != Pids.NAMESPACE:
            return self.make(confirm)
        numbers = {thread.tid for thread in self.plan.threads}
        result = restart_inside(self.plan.profile, numbers, self.make, confirm)
        return replace(result, duration_seconds=time.monotonic() - self._started)  # inside the clock is the image's

    def make(self, confirm: Callable[[RestartResult], None] | None) -> RestartResult:
        """Make the task, and let it go.

        Args:
            confirm: called when all is ready and nothing runs yet; if it raises, nothing is left.

        Raises:
            ImageError: the memory part of the stream is damaged; nothing is left.
            RestartError: the task could not be made; nothing is left.
        """
        plan = self.plan
        same = self._options.pids != Pids.NEW
        with Broker() as broker, Vessel(plan, plan.pid if same else 0) as vessel:
            _join_session(plan, vessel)
            whole = restore.map_areas(plan, vessel, broker)
            restore.fill(vessel, self._first, self._records, whole)
            restore.finish(plan, vessel, broker, whole)
            self._give_files(vessel, broker)
            numbers = threads.make(plan, vessel, same_numbers=same)
            _set_up_process(plan, vessel, numbers)
            for thread in plan.threads:
                threads.set_up(thread, plan, vessel, numbers[thread.tid])
            self._finish(vessel, numbers)
            result = RestartResult(root_pid=vessel.pid, start_time=procfs.stat(vessel.pid).start_time, pids=numbers,
                                   threads=len(plan.threads), duration_seconds=time.monotonic() - self._started)
            if confirm:
                confirm(result)
            vessel.release(plan.process.stopped_by)
        return result

    def _give_files(self, vessel: Vessel, broker: Broker) -> None:
        plan, batch = self.plan, vessel.batch
        placement.restart(plan, vessel, broker, must_be_same=self._options.files == "fail")
        if plan.process.root != "/":
            batch.call(NR.CHROOT, batch.text(plan.process.root), what=f"chroot to {plan.process.root}")
        inside = plan.process.cwd.removeprefix(plan.process.root) if plan.process.root != "/" else plan.process.cwd
        batch.call(NR.CHDIR, batch.text(inside or "/"), what=f"chdir to {plan.process.cwd}")
        batch.call(NR.UMASK, plan.process.umask)
        vessel.run()

    def _finish(self, vessel: Vessel, numbers: dict[int, int]) -> None:
        plan = self.plan
        pending.restart(plan.pending_of(0), vessel.batch, vessel.pid, vessel.pid)
        limits.restart(plan.limits, vessel.batch)
        vessel.run()
        ours = credentials.dump(procfs.status("self")).capabilities
        for thread in reversed(plan.threads):
            threads.become_itself(thread, vessel, numbers[thread.tid], ours)
        if plan.process.dumpable in _DUMPABLE_SETTABLE:
            vessel.batch.call(NR.PRCTL, _PR_SET_DUMPABLE, plan.process.dumpable)
        posix.arm(plan.posix_timers, vessel.batch)
        interval.restart(plan.interval_timers, vessel.batch)
        vessel.run()
        vessel.unmap_scratch()
        for thread in plan.threads:
            threads.set_registers(thread, numbers[thread.tid])


def _join_session(plan: Plan, vessel: Vessel) -> None:
    """Lead a session or a process group as before; a group that somebody else led becomes one of our own."""
    if plan.process.session == plan.pid:
        vessel.batch.call(NR.SETSID)
    else:
        vessel.batch.call(NR.SETPGID, 0, 0)
    vessel.run()


def _set_up_process(plan: Plan, vessel: Vessel, numbers: dict[int, int]) -> None:
    """Give the process what all its threads share."""
    process, batch = plan.process, vessel.batch
    actions.restart(plan.actions, batch)
    vessel.run()
    posix.restart(plan.posix_timers, batch, numbers)
    if process.thp_disable:
        batch.call(NR.PRCTL, _PR_SET_THP_DISABLE, 1, 0, 0, 0)
    if process.child_subreaper:
        batch.call(NR.PRCTL, _PR_SET_CHILD_SUBREAPER, 1)
    registered = plan.threads[0].membarrier
    for bit in range(registered.bit_length()):
        if registered >> bit & 1:
            batch.call(NR.MEMBARRIER, 1 << bit, 0, check=False)
    vessel.run()
    _write(vessel.pid, "oom_score_adj", str(process.oom_score_adj))
    _write(vessel.pid, "coredump_filter", hex(process.coredump_filter))


def _write(pid: int, name: str, value: str) -> None:
    """Write an attribute where we may; what the kernel refuses is inherited from us."""
    with suppress(OSError):
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
