"""One restart: read and check the plan, make vessels into the tasks, fill their memory from the stream, let them go."""

from __future__ import annotations

import os
import signal
import struct
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from crd.engine.api import Pids, RestartOptions, RestartResult
from crd.engine.rehearsal import Rehearsal, Seen
from crd.engine.userspace import call_filter, credentials, limits, machine, sandbox, segmentation, threads
from crd.engine.userspace.broker import Broker
from crd.engine.userspace.fds import placement, stdio
from crd.engine.userspace.fds.terminal import control, open_masters
from crd.engine.userspace.forecast import forecast
from crd.engine.userspace.ipc import messages, semaphores
from crd.engine.userspace.mem import mdwe, merging, policies, restore, sysv
from crd.engine.userspace.mem.filling import Filling
from crd.engine.userspace.mem.homes import Homes
from crd.engine.userspace.namespace import rehearse_inside, restart_inside
from crd.engine.userspace.plan import check, read_plan
from crd.engine.userspace.sig import actions, pending
from crd.engine.userspace.skeleton import Skeleton
from crd.engine.userspace.timers import interval, posix
from crd.engine.userspace.watch import Watch
from crd.errors import RestartError, TargetError
from crd.image.profile import LocalDescriptors, Machine
from crd.image.reader import ImageReader
from crd.image.verify import verified
from crd.native.syscall import NR
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crd.engine.api import RestartPlan
    from crd.engine.userspace.fds.kind import Making
    from crd.engine.userspace.fds.terminal import Masters
    from crd.engine.userspace.plan import Plan
    from crd.engine.userspace.vessel import Vessel
    from crd.image.codec import Record
    from crd.image.framing import Source
    from crd.image.profile import Capabilities

_PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER, _PR_SET_THP_DISABLE = 4, 36, 41
_DUMPABLE_SETTABLE = {0, 1}
_AT_FDCWD = -100
_STOPPING = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}


class Restart:
    """An image being restarted: ``plan`` is known, nothing is made yet."""

    def __init__(self, source: Source, options: RestartOptions) -> None:
        """Read what is to be made; raises ImageError."""
        self._started = time.monotonic()
        self._options = options
        self._notes: list[str] = []
        self._listeners: list[int] = []
        self._records: Iterator[Record] = verified(ImageReader(source))
        with _impossible_wishes():
            self.plan, self._first = read_plan(self._records)

    def run(self, confirm: Callable[[RestartResult], None] | None) -> RestartResult:
        """Make the tasks, in a namespace of its own if asked for, and let them go; see ``make``.

        Raises:
            RestartError, AccessDenied: it cannot be restarted here; see also ``plan.check``.
        """
        self._check()
        if self._options.pids != Pids.NAMESPACE:
            return self.make(confirm)
        result = restart_inside(self.plan, self.make, confirm and (lambda ready: confirm(self._timed(ready))))
        return self._timed(result)  # once more: inside, the clock is the image's

    def rehearse(self) -> Rehearsal:
        """Make the tasks in a sandbox, let them run for a moment, and have nothing left of them.

        Raises:
            SandboxMissing: there can be none here, or not for these tasks.
            RestartError, AccessDenied: they cannot be made in it.
        """
        sandbox.narrow(self.plan)
        found = rehearse_inside(self.plan, partial(sandbox.enter, self.plan), self._rehearse)
        return Rehearsal(
            tasks=len(self.plan.processes), threads=len(self.plan.threads), notes=tuple(found["notes"]),
            seen=tuple(Seen(**seen) for seen in found["seen"]), duration_seconds=time.monotonic() - self._started)

    def _rehearse(self) -> dict[str, Any]:
        self._check()
        with self._made() as (skeleton, broker, _, _):
            broker.keep()
            sandbox.close_off()
            watch = Watch(skeleton, [(plan.pid, plan.leader.comm, _is_stopped(plan)) for plan in self.plan.processes])
            seen = watch.run()
        return {"notes": self._notes, "seen": [asdict(one) for one in seen]}

    def _check(self) -> None:
        with _impossible_wishes():
            check(self.plan, self._options)

    def _timed(self, result: RestartResult) -> RestartResult:
        return replace(result, duration_seconds=time.monotonic() - self._started)

    def make(self, confirm: Callable[[RestartResult], None] | None) -> RestartResult:
        """Make the tasks, and let them go.

        Args:
            confirm: called when all is ready and nothing runs yet; if it raises, nothing is left.

        Raises:
            ImageError: the memory part of the stream is damaged; nothing is left.
            RestartError: a task could not be made; nothing is left.
        """
        with self._made() as (skeleton, broker, masters, tids):
            root = skeleton.root
            result = self._timed(RestartResult(
                root_pid=root.pid, start_time=procfs.stat(root.pid).start_time, pids=tids,
                tasks=len(self.plan.processes), threads=len(self.plan.threads), notes=tuple(self._notes),
                listeners=tuple(self._listeners)))
            if confirm:
                confirm(result)
            if masters.fresh and not self._relays:
                stdio.hold(masters.fresh, root.pid)
            broker.keep()
            skeleton.release()
            return replace(result, terminals=tuple(map(broker.release, masters.fresh if self._relays else ())))

    @contextmanager
    def _made(self) -> Iterator[tuple[Skeleton, Broker, Masters, dict[int, int]]]:
        """Make the tasks, which end with the context unless released; tell the number of each thread by the image's.

        Raises: as ``make``.
        """
        plan = self.plan
        same = self._options.pids != Pids.NEW
        with Broker(plan.root.leader) as broker, ExitStack() as stack:
            with _impossible_wishes():
                masters = open_masters(plan.root, broker, self._options.stdio)
            skeleton = stack.enter_context(Skeleton(
                plan, same_numbers=same, session=stdio.session_of(plan.root, self._options.stdio),
                control={session: partial(control, slave=slave, broker=broker)
                         for session, slave in masters.controlling.items()}))
            with _impossible_wishes():
                tids = self._build(skeleton, broker, masters, same_numbers=same)
            self._notes += skeleton.notes
            yield skeleton, broker, masters, tids

    @property
    def _relays(self) -> bool:
        """Whether the caller takes the masters of fresh terminals."""
        return self._options.reap and self._options.pids != Pids.NAMESPACE

    def _build(self, skeleton: Skeleton, broker: Broker, masters: Masters, *, same_numbers: bool) -> dict[int, int]:
        """Make the vessels into the tasks, ready to be let go; return the number of each thread by the image's."""
        plans = self.plan.processes
        making = placement.prepare(plans, skeleton.vessels, broker, self._options.files, masters)
        sysv.make(making, plans)
        with Homes(plans, broker) as homes:
            Filling(making, plans, skeleton, homes).run(self._first, self._records)
        skeleton.finish()
        for plan in plans:
            making.turn_to(plan)
            restore.finish(plan, skeleton[plan.pid], broker)
            _write_login_uid(plan, skeleton[plan.pid])
        sysv.settle(making)
        making.notes += [*semaphores.restart(self.plan.root, broker), *messages.restart(self.plan.root, broker)]
        placement.restart(making, plans)
        tids: dict[int, int] = {}
        for plan in plans:
            making.turn_to(plan)
            if not plan.sharing.directories:
                _enter_directories(making)
            if plan.is_served:
                self._serve(skeleton[plan.pid], broker)
            tids |= threads.make(plan, skeleton[plan.pid], same_numbers=same_numbers)
        placement.number(making, {**skeleton.numbers, **tids})
        for plan in reversed(plans):  # the end of a child's making may be told to its parent, who forgets it then
            self._complete(plan, skeleton, tids)
        placement.arm(making)
        self._notes += [*making.notes, *policies.missing(plans)]
        return tids

    def _serve(self, vessel: Vessel, broker: Broker) -> None:
        """Have the calls of a process served again, if anybody will."""
        if self._options.served and self._options.pids != Pids.NAMESPACE:
            self._listeners.append(broker.hold(call_filter.restart(vessel)))
        else:
            self._notes.append(f"nobody serves the calls checkpoint and restart of process {vessel.pid}: ENOSYS")

    def _complete(self, plan: Plan, skeleton: Skeleton, tids: dict[int, int]) -> None:
        """Give a process all but its memory and files; it can make nothing any more, and stops if it was stopped."""
        vessel = skeleton[plan.pid]
        self._set_up_process(plan, vessel, tids)
        for thread in plan.threads:
            threads.set_up(thread, plan, vessel, tids[thread.tid])
        for record in plan.of(Machine):
            self._notes += machine.restart(record, vessel, tids[record.tid])
        self._finish(plan, vessel, tids)
        if _is_stopped(plan):
            vessel.stop(_stop_signal(plan))
            if plan.process.stop_reported and plan is not self.plan.root:
                skeleton[plan.process.parent_pid].note_stop(vessel)

    def _set_up_process(self, plan: Plan, vessel: Vessel, tids: dict[int, int]) -> None:
        """Give the process what all its threads share."""
        batch = vessel.batch
        actions.restart(plan.actions, batch)
        vessel.run()
        posix.restart(plan.posix_timers, vessel, tids, choose=posix.can_choose_numbers())
        if plan.process.thp_disable:
            batch.call(NR.PRCTL, _PR_SET_THP_DISABLE, 1, plan.process.thp_disable & ~1, 0, 0)
        if plan.process.child_subreaper:
            batch.call(NR.PRCTL, _PR_SET_CHILD_SUBREAPER, 1)
        registered = plan.leader.membarrier
        for bit in range(registered.bit_length()):
            if registered >> bit & 1:
                batch.call(NR.MEMBARRIER, 1 << bit, 0, check=False)
        vessel.run()
        self._notes += merging.restart(plan, vessel)
        for table in plan.of(LocalDescriptors):
            segmentation.restart(table, vessel)
        self._write(vessel.pid, "oom_score_adj", str(plan.process.oom_score_adj))
        self._write(vessel.pid, "coredump_filter", hex(plan.process.coredump_filter))

    def _write(self, pid: int, name: str, value: str) -> None:
        """Write an attribute where we may."""
        try:
            fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as error:
            self._notes.append(f"{name} {value} cannot be set ({error.strerror}): it has that of crd")

    def _finish(self, plan: Plan, vessel: Vessel, tids: dict[int, int]) -> None:
        pending.restart(plan.pending_of(0), vessel.batch, vessel.pid, vessel.pid)
        limits.restart(plan.limits, vessel.batch)
        vessel.run()
        parent_stays = plan is not self.plan.root or (self._options.reap and self._options.pids != Pids.NAMESPACE)
        for thread in reversed(plan.threads):
            threads.become_itself(thread, plan, vessel, tids[thread.tid], self._ours, parent_stays=parent_stays)
        self._notes += _what_is_missing(plan, self._ours, parent_stays=parent_stays)
        if plan.process.dumpable in _DUMPABLE_SETTABLE:
            vessel.batch.call(NR.PRCTL, _PR_SET_DUMPABLE, plan.process.dumpable)
        mdwe.restart(plan, vessel.batch)
        posix.arm(plan.posix_timers, vessel)
        interval.restart(plan.interval_timers, vessel.batch)
        vessel.run()
        vessel.unmap_scratch()
        for thread in plan.threads:
            threads.set_registers(thread, plan, tids[thread.tid])

    @cached_property
    def _ours(self) -> Capabilities:
        """The capabilities with which a vessel begins."""
        return credentials.dump(procfs.status("self")).capabilities


def plan_of(source: Source, options: RestartOptions) -> RestartPlan:
    """Read what is to be made and tell it, with all that stands in its way; raises ImageError."""
    with _impossible_wishes():
        tree, _ = read_plan(verified(ImageReader(source)))
        return forecast(tree, options)


@contextmanager
def _impossible_wishes() -> Iterator[None]:
    """Turn what a well-formed but absurd image runs into, such as a path with a NUL, into an error about the image."""
    try:
        yield
    except OSError as error:
        raise RestartError(f"making the task: {error}", errno=error.errno) from error
    except (ValueError, OverflowError, struct.error) as error:
        raise RestartError(f"the image asks for something that cannot be: {error}") from error


def _is_stopped(plan: Plan) -> bool:
    """A SIGCONT that is still pending came after the signal that stopped it, and would be lost by stopping it again."""
    return bool(plan.process.stopped_by) and not any(
        int.from_bytes(record.siginfo[:4], "little") == signal.SIGCONT for record in plan.pending)


def _stop_signal(plan: Plan) -> int:
    """Return the signal with which to stop a process: its parent may still ask for it, and not all stop everybody."""
    number = plan.process.stopped_by
    handled = plan.actions.actions[number - 1].handler
    blocked = any(thread.signal_mask >> (number - 1) & 1 for thread in plan.threads)
    return number if number in _STOPPING and not handled and not blocked else signal.SIGSTOP


def _enter_directories(making: Making) -> None:
    process, vessel, broker = making.plan.process, making.vessel, making.broker
    batch = vessel.batch
    if process.root != "/":
        _enter(broker.open_directory(process.root), vessel, broker)
        batch.call(NR.CHROOT, batch.text("."), what=f"chroot to {process.root}")
    deleted = making.contents.get(process.cwd_object)
    _enter(broker.open_directory(process.cwd) if deleted is None else deleted, vessel, broker)
    batch.call(NR.UMASK, process.umask)
    vessel.run()


def _enter(fd: int, vessel: Vessel, broker: Broker) -> None:
    pulled = broker.pull(vessel.batch, fd)
    vessel.batch.call(NR.FCHDIR, pulled, what="entering a directory")
    vessel.batch.call(NR.CLOSE, pulled)


def _write_login_uid(plan: Plan, vessel: Vessel) -> None:
    """Have the task say who logged in, if it is not who started us; only itself may (proc_pid_loginuid(5))."""
    with suppress(TargetError):  # a kernel without audit
        if procfs.number("self", "loginuid") != plan.process.login_uid:
            batch, text = vessel.batch, str(plan.process.login_uid).encode()
            fd = batch.call(NR.OPENAT, _AT_FDCWD, batch.text("/proc/self/loginuid"), os.O_WRONLY, 0, check=False)
            batch.call(NR.WRITE, fd, batch.data(text), len(text), check=False)
            batch.call(NR.CLOSE, fd, check=False)
            vessel.run()


def _what_is_missing(plan: Plan, ours: Capabilities, *, parent_stays: bool) -> Iterator[str]:
    for thread in plan.threads:
        if lacking := credentials.missing(thread, ours):
            yield f"thread {thread.tid} lacks capabilities that crd itself has not: {lacking:#x}"
        if thread.parent_death_signal and not parent_stays:
            yield (f"thread {thread.tid} gets no signal {thread.parent_death_signal} when its parent ends: "
                   "that was another process")
