"""Filters of seccomp(2): read by ptrace(2), looked through for what crd must do in the target, and installed again.

A stub makes system calls in the target.  PTRACE_O_SUSPEND_SECCOMP would let them pass whatever a filter says, but it
ends with the tracer, and with it the target if a stub is under way.  So a stub runs only if all filters let it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING

from crd import syscalls
from crd.engine.userspace import bpf
from crd.engine.userspace.questions import OUT, Out, Question
from crd.errors import NativeError, Obstacle, RestartUnsupported, TargetUnsupported
from crd.image.objects import SeccompFilter
from crd.image.profile import Confinement
from crd.native import tracee
from crd.native.syscall import NR
from crd.target import task_obstacles

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from crd.engine.userspace.freeze import Frozen
    from crd.engine.userspace.objects import ObjectNumbers
    from crd.engine.userspace.plan import Plan
    from crd.engine.userspace.vessel import Vessel
    from crd.image.profile import Thread
    from crd.target.procfs import Status

_SET_MODE_FILTER = 1
_REMEDY = "Let its filter allow that (systemd: SystemCallFilter=), or run it without one."

STUB = [Question(NR.RT_SIGPROCMASK, (2, OUT, 0, 8)), Question(NR.MMAP, (0, OUT, 3, 0x22, -1, 0)),
        Question(NR.MUNMAP, (OUT, OUT))]
"""What every stub does (``crd/native/csrc/arch/x86_64/stubs.S``); OUT stands for any argument."""
SURVEY = [*(Question(NR.MMAP, (OUT, OUT, rights, 0x100022, -1, 0)) for rights in (3, 5)),
          Question(NR.PPOLL, (0, 0, OUT, 0, 0))]
"""What asking all threads at once does besides."""
SNAPSHOT = [Question(NR.CLONE, (0x4700, 0, 0, 0, 0)), Question(NR.CLONE, (0x600,)), Question(NR.EXIT_GROUP, (OUT,)),
            Question(NR.WAIT4, (OUT, 0, 0x4000_0000, 0))]
"""What making a snapshot child does besides."""

Filter = tuple[int, bytes]
"""Flags and program."""


@dataclass(slots=True)
class Confined:
    """What seccomp(2) keeps the threads of a stopped process from.

    Attributes:
        statuses: of threads that had to be looked at closely.
        filters: of those that have any, by tid; those that were installed first at the front.
        served: all have the filter of ``crctl run`` (``crd.syscalls``), which is not among these.
    """

    statuses: dict[int, Status] = field(default_factory=dict)
    filters: dict[int, tuple[Filter, ...]] = field(default_factory=dict)
    served: bool = False

    def forbids(self, calls: Iterable[Question]) -> str:
        """Return the name of a call that some filter does not just let pass; empty if there is none."""
        programs = {program for chain in self.filters.values() for _, program in chain}
        return next((_name(call) for call in calls for program in programs if not _allows(program, call)), "")

    def need(self, calls: Iterable[Question]) -> None:
        """Make sure that stubs may make these calls; raises TargetUnsupported."""
        if name := self.forbids(calls):
            tid = next(iter(self.filters))
            raise TargetUnsupported(reasons=[Obstacle(
                "task.seccomp", f"thread {tid}", f"runs under a filter of seccomp that may not allow {name}, which crd "
                "has to make the target do", _REMEDY)])


def look(state: Frozen) -> Confined:
    """Read the filters of a stopped process.

    Raises:
        TargetUnsupported: a stub may not run under them, or they cannot be brought back.
    """
    statuses = {tid: state.status(tid) for tid in state.group.confined()}
    reasons = [*task_obstacles.confinement(statuses)]
    confined = Confined(statuses)
    served = set()
    for tid, status in statuses.items() if not reasons else ():
        if status.seccomp:
            found = _read(tid)
            confined.filters[tid] = tuple(one for one in found if one[1] != syscalls.PROGRAM)
            if confined.filters[tid] != found:
                served.add(tid)
            if any(bpf.may_notify(program) for _, program in confined.filters[tid]):
                reasons.append(Obstacle(
                    "task.seccomp", f"thread {tid}", "hands system calls to a supervisor (SECCOMP_RET_USER_NOTIF), "
                    "which crd cannot save", "Run it without the supervisor."))
                break
    confined.served = bool(served)
    if served and served != state.threads.keys():
        reasons.append(Obstacle("task.seccomp", f"thread {min(served)}", "alone has the filter of crctl run",
                                "Start the whole program by crctl run."))
    if reasons:
        raise TargetUnsupported(reasons=reasons, pid=state.pid)
    confined.need(STUB)
    return confined


def _read(tid: int) -> tuple[Filter, ...]:
    try:
        return tuple(tracee.seccomp_filters(tid))
    except NativeError as error:
        raise TargetUnsupported(reasons=[Obstacle(
            "task.seccomp", f"thread {tid}", f"runs under a filter of seccomp that cannot be read: {error.message}",
            _REMEDY)]) from error


def _allows(program: bytes, call: Question) -> bool:
    known = {index: value for index, value in enumerate(call.arguments) if not isinstance(value, Out)}
    try:
        return bpf.verdicts(program, call.number, known) <= {bpf.ALLOW, bpf.LOG}
    except (bpf.TooManyWaysError, IndexError, KeyError):
        return False


def _name(call: Question) -> str:
    return next((name for name, value in vars(NR).items() if value == call.number), f"call {call.number}").lower()


def records(confined: Iterable[Confined], numbers: ObjectNumbers) -> dict[Filter, SeccompFilter]:
    """Return the record of each filter."""
    distinct = dict.fromkeys(one for its in confined for chain in its.filters.values() for one in chain)
    return {one: SeccompFilter(objref=numbers.new(), flags=one[0], program=one[1]) for one in distinct}


def check(plans: Sequence[Plan]) -> None:
    """Make sure that filters can be installed; raises RestartUnsupported."""
    if any(plan.of(Confinement) for plan in plans) and (reason := task_obstacles.why_no_filters()):
        raise RestartUnsupported(f"the image has filters of seccomp, and {reason}", hint="Restart it as root.")


def restart_common(plan: Plan, vessel: Vessel) -> None:
    """Install what all threads have, before there are others than the leader: they then have the very same.

    From here on, until they are let go, nothing is kept from them by filters (PTRACE_O_SUSPEND_SECCOMP).
    """
    _install(_common(plan), plan, vessel, vessel.pid)


def restart(thread: Thread, plan: Plan, vessel: Vessel, tid: int) -> None:
    """Install what a thread has besides; it still is privileged."""
    _install(_chain(thread, plan)[len(_common(plan)):], plan, vessel, tid)


def _chain(thread: Thread, plan: Plan) -> list[int]:
    return next(([*one.filters] for one in plan.of(Confinement) if one.tid == thread.tid), [])


def _common(plan: Plan) -> list[int]:
    chains = [_chain(thread, plan) for thread in plan.threads]
    same = takewhile(lambda objrefs: len(set(objrefs)) == 1, zip(*chains, strict=False))
    return [objrefs[0] for objrefs in same]


def _install(objrefs: Sequence[int], plan: Plan, vessel: Vessel, tid: int) -> None:
    if not objrefs:
        return
    tracee.set_options(tid, tracee.OPTION_EXITKILL | tracee.OPTION_TRACESYSGOOD | tracee.OPTION_SUSPEND_SECCOMP)
    for objref in objrefs:
        record: SeccompFilter = plan.objects[objref]
        code = vessel.batch.data(record.program)
        program = vessel.batch.data(bpf.fprog(record.program, code))
        vessel.batch.call(NR.SECCOMP, _SET_MODE_FILTER, record.flags, program, what="installing a filter of seccomp")
        vessel.run(tid)
