"""One process of a target: captured while it is stopped, the rest asked of its snapshot child when it runs again."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crd.engine.userspace import attributes, confinement, dispatch, outside
from crd.engine.userspace import capture as capturing
from crd.engine.userspace.attributes import Attributes
from crd.engine.userspace.interview import end_areas, interview
from crd.engine.userspace.mem import guards, huge, little, pages, policies
from crd.engine.userspace.mem.areas import Areas
from crd.engine.userspace.mem.changes import Changes
from crd.engine.userspace.mem.memories import Memories
from crd.engine.userspace.questions import TargetAsker
from crd.engine.userspace.snapshot import Snapshot
from crd.errors import InjectionInterrupted, NativeError, Obstacle, TargetGone, TargetUnsupported, TraceeGone
from crd.native import tracee
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    from crd.engine.api import CheckpointOptions
    from crd.engine.userspace.capture import Capture, Known
    from crd.engine.userspace.freeze import Frozen
    from crd.engine.userspace.haste import Haste
    from crd.engine.userspace.mem.layout import MappedObjects
    from crd.engine.userspace.mem.runs import Run
    from crd.engine.userspace.mem.shared import Reserve
    from crd.engine.userspace.mem.tracking import Tracking
    from crd.engine.userspace.outside import Outside
    from crd.native.inject import Injector
    from crd.target.procfs import MapEntry

_STEP_HOME_SECONDS = 0.002
_DROPPED_BY_FORK = {"lo", "lf"}
"""VmFlags of mlock(2) and MLOCK_ONFAULT."""


class TryAgainError(Exception):
    """The target was let go unharmed, and could not be captured this time."""


class ChangedError(TryAgainError):
    """What was read before the stop did not hold in it."""


@dataclass(frozen=True, slots=True)
class Whole:
    """What all processes of a target have in common while they are captured.

    Attributes:
        options: of the checkpoint.
        haste: of the stop.
        pids: of the processes.
        mapped: what they have mapped.
        notes: of what was written, by pid.
        reserve: for copies of memory.
        adopters: processes whose snapshot child the target itself would adopt.
    """

    options: CheckpointOptions
    haste: Haste
    pids: Container[int]
    mapped: MappedObjects
    notes: Mapping[int, Tracking]
    reserve: Reserve
    adopters: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Taken:
    """A process, captured: what is left to do needs it no longer.

    Attributes:
        capture: what was read in the stop.
        memories: where its private pages are.
        method: "snapshot", "precopy" or "copy".
        reason: for that.
        before: what was read before the stop, if it was.
        attributes: as its snapshot child says; None before ``finish``.
        flags: VmFlags by start of the area; None before ``finish``.
        guards: guard regions of private memory; before ``finish`` those that the snapshot child does not tell.
    """

    capture: Capture
    memories: Memories | Changes
    method: str
    reason: str
    before: Known | None = None
    attributes: Attributes | None = None
    flags: dict[int, str] | None = None
    guards: list[Run] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.capture.pid

    def finish(self) -> tuple[Attributes, dict[int, str]]:
        """Ask what the snapshot child can be asked, and return attributes and flags; the target may run.

        Raises:
            ChangedError: what was known before the stop did not hold in it.
        """
        if child := self.memories.child:
            child.detach_itself()
            self.attributes = Attributes.told(child.asker.ask(attributes.QUESTIONS))
            self.flags = _flags(self.capture, policies.vm_flags(child.pid))
            self.guards += guards.of_private_memory(child.pid, self.capture.entries)
        elif self.flags is None:
            self.flags = _unchanged_flags(self.capture)
        self.guards += self.memories.kept_guards()
        self.attributes = self.attributes or self.capture.attributes()
        assert self.flags is not None  # noqa: S101
        try:
            if self.before and not self.before.holds(self.pid):
                raise ChangedError
        except TargetGone as error:  # so nobody knows
            raise ChangedError from error
        return self.attributes, self.flags


class Taking:
    """A stopped process on its way to being captured.

    Attributes:
        state, before: the process; what was read of it before the stop, if anything was.
        seen: of it in the stop.
        shared: with its parent.
        entries: its areas.
        stubs: for system calls in it.
        confined: what seccomp(2) keeps it from.
        notes: of what it has written, if they are to be had.
        little: it is quickest to copy what it has (left) to be copied in the stop.
        asked: the questions put to it.
        taken: what has been captured of it.
    """

    taken: Taken

    def __init__(self, state: Frozen, before: Known | None, seen: Outside, whole: Whole) -> None:
        """Look at a process that nothing has been done to yet.

        Raises:
            TryAgainError: let go and try again.
            TryLaterError: no stub can run in it just now.
            TargetUnsupported: no stub can run in it.
        """
        self.state, self.before, self.seen = state, before, seen
        self.shared = capturing.shared(state.pid, before, seen, whole.pids)
        self.entries = before.areas(state.pid, seen.maps) if before else Areas(procfs.parsed_maps(state.pid, seen.maps))
        self.stubs = capturing.injector(state, self.entries)
        self.confined = confinement.look(state)
        dispatch.check(state)
        if inside := [tid for tid, at in zip(state.group.tids, state.group.addresses(), strict=True)
                      if self.stubs.inside(at)]:
            _see_home(state, self.stubs, inside)
            raise TryAgainError
        if self.stubs.remove_leftover(state.pid, state.registers, self.entries.nameless):
            self.entries = Areas.of(state.pid)
        self.notes = _looked(whole.notes.get(state.pid), self.entries)
        self.little = whole.options.method == "auto" and self._is_little()
        self.asked = capturing.asked(state, self.entries, self.stubs, self.confined,
                                     everything=self.little or whole.options.method == "copy")

    def _is_little(self) -> bool:
        """Whether it is quickest to copy what it has (left) to be copied in the stop.

        Without notes that holds only for areas known before; and one that is confined is rather not asked what its
        snapshot child can be.
        """
        if huge.why_copy(self.entries.private):  # these count as nobody's memory (RssAnon)
            return False
        if not self.before or self.notes:
            return bool(self.before and self.notes and self.notes.is_little())
        return (self.before.maps == self.seen.maps and not self.confined.filters
                and little.own_bytes(self.state.group.status(self.state.pid)) >= 0)

    @property
    def capture(self) -> Capture:
        """What was read in the stop."""
        return self.taken.capture

    def take(self, stack: ExitStack, whole: Whole) -> None:
        """Capture the process, which has been asked, and begin to make its snapshot child, or copy its memory.

        Parents come first.
        """
        state, stubs = self.state, self.stubs
        captured = capturing.capture(self.asked, self.before or capturing.know(state.pid), self.seen, self.shared,
                                     whole.mapped, self.confined)
        if captured.subreaper or state.pid == 1 or captured.stat.parent_pid in whole.adopters:
            whole.adopters.add(state.pid)
        found = None
        if self.little:
            copied = little.copy(state.memory, self.entries.private_runs, self.notes, whole.reserve)
            found = Taken(captured, copied.memories, copied.method, copied.reason, guards=copied.guards)
        reason = _why_copy(captured, whole)
        if not found and not reason:
            found = _snapshot(stack, state, stubs, captured, self.notes, whole)
        self.taken = found or _copy(state, stubs, captured, reason, whole)
        self.taken.before = self.before

    def complete(self, whole: Whole) -> None:
        """Wait until the snapshot child is made; if the kernel makes none, copy the memory."""
        try:
            if child := self.taken.memories.child:
                child.wait_made()
        except NativeError as error:
            if error.operation != "clone" or whole.options.method == "snapshot":
                raise
            self.taken = _copy(self.state, self.stubs, self.capture, "the kernel makes no snapshot child", whole)
            self.taken.before = self.before


def take_all(stack: ExitStack, states: Mapping[int, Frozen], before: Mapping[int, Known],
             whole: Whole) -> list[Taking]:
    """Capture stopped processes, parents first, but for what ``complete`` is to wait for.

    Their snapshot children live as long as the stack.

    Args:
        stack: of contexts.
        states: the processes by pid.
        before: what was read of some before the stop.
        whole: the target.

    Raises:
        TryAgainError: let go and try again.
        TargetUnsupported: one holds something that cannot be saved.
    """
    with _understood(states):
        found = []
        for pid, seen in outside.look(states):
            state = states[pid]
            found.append(Taking(state, before.get(pid), seen, whole))
            stack.callback(_tidy_up, state, found[-1].stubs)
        interview([one.asked for one in found])
        for one in found:
            one.take(stack, whole)
    return found


def complete(found: Sequence[Taking], whole: Whole) -> list[Taken]:
    """Wait until all snapshot children are made, and return what was captured; raises as ``take_all``."""
    with _understood({one.state.pid: one.state for one in found}):
        for one in found:
            one.complete(whole)
        end_areas([one.asked for one in found])
    return [one.taken for one in found]


@contextmanager
def _understood(states: Mapping[int, Frozen]) -> Iterator[None]:
    """A context in which errors of injections are told as what they mean for the target."""
    try:
        yield
    except InjectionInterrupted as interrupted:
        for state in states.values():
            if interrupted.tid in state.threads:
                state.threads[interrupted.tid].signal_due = interrupted.signal
        raise TryAgainError from interrupted
    except NativeError as error:
        if error.operation != "mmap":
            raise
        pid = next((pid for pid, state in states.items() if error.details.get("tid") in state.threads), 0)
        raise TargetUnsupported(reasons=[Obstacle(
            "memory.no-room", f"pid {pid}", f"cannot map a page for crd: {error.message}",
            "Raise its limit of address space (prlimit --as).")], pid=pid) from error


def _see_home(state: Frozen, stubs: Injector, tids: list[int]) -> None:
    """Let threads out of a dead tracer's stubs if a job-control stop keeps them there; the others go alone.

    One that comes home to a system call is stopped before it; one that computes goes on until we tire of waiting.
    """
    for tid in tids:
        if not state.threads[tid].stop.is_group_stop:
            continue
        while stubs.inside(tracee.get_registers(tid).rip):
            tracee.to_syscall(tid)  # the interrupt of the freeze may be due yet: it does not stir then
            stop = tracee.wait_until(time.monotonic() + _STEP_HOME_SECONDS, tid)
            if not stop:
                tracee.interrupt(tid)
                stop = tracee.wait(tid)
            if stop.ended:
                raise TraceeGone(f"task {tid} ended", tid=tid)
            if stop.is_signal:
                state.threads[tid].signal_due = stop.signal
                break


def _tidy_up(state: Frozen, stubs: Injector) -> None:
    """Unmap the area of the interview if an error came before anything else did."""
    with suppress(NativeError):  # then the next tracer does
        stubs.unmap_area(state.pid, state.registers)


def _why_copy(captured: Capture, whole: Whole) -> str:
    """Say why the target must be copied while it is stopped; empty if a snapshot child may be made of it."""
    if whole.options.method == "copy":
        return "asked for"
    if captured.pid in whole.adopters:
        return "the snapshot child would become the target's own: it adopts orphans (PR_SET_CHILD_SUBREAPER)"
    if name := captured.confined.forbids(confinement.SNAPSHOT):
        return f"a filter of seccomp allows the target no snapshot child ({name})"
    return huge.why_copy(captured.entries.private)


def _looked(notes: Tracking | None, entries: list[MapEntry]) -> Tracking | None:
    """Look for the last time at what was written; None if that is not to be had."""
    with suppress(NativeError):
        if notes:
            notes.look(entries)
            return notes
    return None


def _snapshot(stack: ExitStack, state: Frozen, stubs: Injector, captured: Capture, notes: Tracking | None,
              whole: Whole) -> Taken:
    """Begin to make the snapshot child, and copy what it will not have."""
    child = stack.enter_context(Snapshot(state, stubs, captured.entries, confined=bool(captured.confined.filters)))
    wiped = [entry for entry in captured.entries.private if entry.start in captured.known.wiped]
    copied = [(runs, pages.copy(state.memory, runs, whole.reserve, just_written=False))
              for entry in wiped if (runs := pages.private_runs(state.pid, [entry]))]
    guarded = guards.of_private_memory(state.pid, wiped)
    if notes and notes.since:
        return Taken(captured, Changes(notes, copied, child), "snapshot",
                     "too much was written since the last image to be copied in the stop", guards=guarded)
    return Taken(captured, Memories(copied, child), "snapshot", "the target runs on while its memory is read",
                 guards=guarded)


def _copy(state: Frozen, stubs: Injector, captured: Capture, reason: str, whole: Whole) -> Taken:
    """Copy all private memory now; needs as much of ours."""
    captured.confined.need(attributes.QUESTIONS)
    told = None if captured.asked_everything else Attributes.told(
        TargetAsker(stubs, state.pid, state.registers).ask(attributes.QUESTIONS))
    whole.haste.relax()
    flags = policies.vm_flags(state.pid)
    runs = pages.private_runs(state.pid, captured.entries)
    memories = Memories(
        [(runs, pages.copy(state.memory, runs, whole.reserve, just_written=False))] if runs else [])
    guarded = guards.of_private_memory(state.pid, captured.entries)
    whole.haste.hurry()
    return Taken(captured, memories, "copy", reason, attributes=told, flags=flags, guards=guarded)


def _unchanged_flags(captured: Capture) -> dict[int, str]:
    """Return the VmFlags of all areas as they were before the stop.

    Raises:
        ChangedError: of an area that is still there they are others now.
    """
    before = captured.known.flags
    areas = {entry.start for entry in captured.entries}
    now = {entry.start: (entry.start, entry.end, entry.permissions) for entry in procfs.maps(captured.pid)}
    same = {entry.start for entry in captured.entries
            if now.get(entry.start) == (entry.start, entry.end, entry.permissions)}
    if areas - before.keys() or any(words != before[start] for start, words in policies.vm_flags(captured.pid).items()
                                    if start in same):
        raise ChangedError
    return dict(before)


def _flags(captured: Capture, inherited: dict[int, str]) -> dict[int, str]:
    """Return the VmFlags of all areas: those of the child's, with what a fork drops, and of those that it lacks.

    Raises:
        ChangedError: the child lacks an area or sees it empty (MADV_DONTFORK, MADV_WIPEONFORK) that was not yet so
            before the stop, and was not copied.
    """
    known = captured.known
    flags = dict(known.flags)
    for start, words in inherited.items():
        if "wf" in words.split() and start not in known.wiped:
            raise ChangedError
        dropped = _DROPPED_BY_FORK & set(flags.get(start, "").split())
        flags[start] = " ".join([words, *sorted(dropped)])
    if {entry.start for entry in captured.entries.private} - inherited.keys() - known.wiped:
        raise ChangedError
    return flags
