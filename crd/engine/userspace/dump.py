"""One checkpoint: stop, capture, make a snapshot, let go, and write the image."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from crd.engine.userspace import capture as capturing
from crd.engine.userspace.fds.kind import TryLaterError
from crd.engine.userspace.freeze import frozen
from crd.engine.userspace.image import write_records
from crd.engine.userspace.mem import handover, layout, pages
from crd.engine.userspace.objects import ObjectNumbers
from crd.engine.userspace.questions import Question, TargetAsker
from crd.engine.userspace.sig import actions
from crd.engine.userspace.snapshot import Snapshot, snapshot
from crd.errors import (
    FreezeTimeout,
    InjectionInterrupted,
    NativeError,
    Obstacle,
    TargetGone,
    TargetUnsupported,
    TraceeGone,
)
from crd.image.header import current_header
from crd.image.writer import ImageWriter
from crd.native.syscall import NR
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.engine.api import CheckpointOptions
    from crd.engine.stream import DescriptorSink
    from crd.engine.userspace.capture import Capture, Known
    from crd.engine.userspace.freeze import Frozen
    from crd.engine.userspace.questions import Asker
    from crd.image.profile import SignalActions
    from crd.native.inject import Injector
    from crd.target.procfs import MapEntry

_ATTEMPTS = 50
_PAUSE_SECONDS = 0.0005
_LATER_ATTEMPTS = 5
_LATER_SECONDS = 0.01
_DROPPED_BY_FORK = {"lo", "lf"}
"""VmFlags of mlock(2) and MLOCK_ONFAULT."""
_BRK, _PR_GET_DUMPABLE, _PR_GET_THP_DISABLE, _PR_GET_MDWE, _MEMBARRIER_GET_REGISTRATIONS = 12, 3, 42, 66, 512
_QUESTIONS = [
    Question(_BRK, (0,)),
    Question(NR.PRCTL, (_PR_GET_DUMPABLE,)),
    Question(NR.PRCTL, (_PR_GET_THP_DISABLE, 0, 0, 0, 0)),
    Question(NR.MEMBARRIER, (_MEMBARRIER_GET_REGISTRATIONS, 0)),
    Question(NR.PRCTL, (_PR_GET_MDWE, 0, 0, 0, 0)),
]


class _TryAgainError(Exception):
    """The target was let go unharmed, and could not be captured this time."""


class _ChangedError(_TryAgainError):
    """What was read before the stop did not hold in it."""


@dataclass(slots=True)
class Attributes:
    """What the memory's owner or its snapshot child knows of it."""

    brk: int
    dumpable: int
    thp_disable: int
    membarrier: int
    actions: SignalActions

    @classmethod
    def ask(cls, asker: Asker) -> Attributes:
        """Put the questions.

        Raises:
            TargetUnsupported: the target has given up a right for good that a restarted one would have.
        """
        brk, dumpable, thp_disable, membarrier, mdwe = (answer.result for answer in asker.ask(_QUESTIONS))
        if mdwe > 0:
            raise TargetUnsupported(reasons=[Obstacle(
                "memory.mdwe", "PR_SET_MDWE", "the program lets no memory become executable, which crd cannot save yet",
                "Run it without (systemd: MemoryDenyWriteExecute=no).")])
        return cls(brk, max(0, dumpable), max(0, thp_disable), max(0, membarrier), actions.dump(asker))


@dataclass(slots=True)
class Memories:
    """Where the private pages come from: copies made during the stop, and the snapshot child for the rest."""

    copied: list[tuple[list[pages.Run], memoryview]] = field(default_factory=list)
    child: Snapshot | None = None

    def pump(self, pump: pages.PagePump, pid: int, entries: list[MapEntry], sink: DescriptorSink) -> None:
        """Write all private pages, in ascending order."""
        if self.child is None:
            for copied in self.copied:
                pump.copied(pid, *copied)
            return
        memory = self.child.memory
        readable, closed = ([run for run in pages.private_runs(self.child.pid, [
            entry for entry in entries if entry.permissions.startswith("r") == can_be_read])
            if not self._has_copy(run)] for can_be_read in (True, False))
        others: list[tuple[list[pages.Run], memoryview | None]] = [*self.copied, *(([run], None) for run in closed)]
        with handover.opened(self.child, pump.writer, sink) as given:
            for runs, content in sorted(others, key=lambda other: other[0]):
                below = [run for run in readable if run[0] < runs[0][0]]
                readable = readable[len(below):]
                pump.given(pid, memory, below, given)
                if content is None:
                    pump.private(pid, memory, runs)
                else:
                    pump.copied(pid, runs, content)
            pump.given(pid, memory, readable, given)

    def _has_copy(self, run: pages.Run) -> bool:
        return any(runs[0][0] <= run[0] < runs[-1][0] + runs[-1][1] for runs, _ in self.copied)


@dataclass(frozen=True, slots=True)
class Dumped:
    """A written image: its figures, and the target that may still be stopped."""

    capture: Capture
    method: str
    method_reason: str
    memory_bytes: int
    image_bytes: int
    stop_seconds: float
    taken_at_ns: int
    header: dict[str, Any]


@contextmanager
def dumped(pid: int, sink: DescriptorSink, options: CheckpointOptions, *, hold: bool) -> Iterator[Dumped]:
    """Write the image of a process.

    Args:
        pid: of the process, which the preflight has found without obstacles.
        sink: of the image.
        options: of the checkpoint.
        hold: keep the target stopped for as long as the context lasts.

    Raises:
        FreezeTimeout: it could not be stopped, or was never in a state to be captured.
        TargetGone: it ended meanwhile.
        TargetUnsupported: it opened or mapped something meanwhile that cannot be restarted.
        ImageError, EngineError: the image could not be written.
    """
    known: Known | None = capturing.know(pid)
    patience = _LATER_ATTEMPTS
    for _ in range(_ATTEMPTS):
        try:
            with frozen(pid, options.freeze_seconds) as state, _taken(state, known, options) as taken:
                yield _written(state, taken, sink, known, hold=hold)
                return
        except _ChangedError:
            known = None  # it changes all the time: what is read in the stop holds
        except _TryAgainError:
            time.sleep(_PAUSE_SECONDS)
        except TryLaterError as later:
            if not (patience := patience - 1):
                raise TargetUnsupported(reasons=[later.obstacle], pid=pid) from later
            time.sleep(_LATER_SECONDS)
        except TraceeGone as error:
            raise TargetGone(f"process {pid} ended while it was being checkpointed", pid=pid) from error
    raise FreezeTimeout(f"process {pid} was never free of signals long enough to be captured", pid=pid)


@dataclass(slots=True)
class _Taken:
    """A target, captured: what is left to do needs it no longer.

    What its snapshot child can still be asked is None: ``attributes``, ``flags`` (VmFlags by start of the area).
    """

    capture: Capture
    objects: ObjectNumbers
    memories: Memories
    method: str
    reason: str
    attributes: Attributes | None = None
    flags: dict[int, str] | None = None


@contextmanager
def _taken(state: Frozen, before: Known | None, options: CheckpointOptions) -> Iterator[_Taken]:
    """Capture the stopped target, and make its snapshot child or copy its memory."""
    maps = procfs.read(state.pid, "maps")
    entries = before.areas(state.pid, maps) if before else procfs.parsed_maps(state.pid, maps)
    stubs = capturing.injector(state, entries)
    if any(map(stubs.inside, state.group.addresses())):
        raise _TryAgainError
    if stubs.remove_leftover(state.pid, state.registers, [(entry.start, entry.end, entry.permissions)
                                                          for entry in entries if not entry.path]):
        entries = procfs.maps(state.pid)
    with ExitStack() as stack:
        stack.callback(_tidy_up, state, stubs)
        try:
            objects = ObjectNumbers()
            captured = capturing.capture(state, entries, stubs, before or capturing.know(state.pid), objects)
            reason = _why_copy(state.pid, captured, options)
            taken = None
            if not reason:
                taken = _snapshot(stack, state, stubs, captured, objects, must=options.method == "snapshot")
            taken = taken or _copy(state, stubs, captured, objects, reason or "the kernel makes no snapshot child")
        except InjectionInterrupted as interrupted:
            state.threads[interrupted.tid].signal_due = interrupted.signal
            raise _TryAgainError from interrupted
        except NativeError as error:
            if error.operation != "mmap":
                raise
            raise TargetUnsupported(reasons=[Obstacle(
                "memory.no-room", f"pid {state.pid}", f"cannot map a page for crd: {error.message}",
                "Raise its limit of address space (prlimit --as).")], pid=state.pid) from error
        yield taken


def _tidy_up(state: Frozen, stubs: Injector) -> None:
    """Unmap the area of the interview if an error came before anything else did."""
    with suppress(NativeError):  # then the next tracer does
        stubs.unmap_area(state.pid, state.registers)


def _why_copy(pid: int, captured: Capture, options: CheckpointOptions) -> str:
    """Say why the target must be copied while it is stopped; empty if a snapshot child may be made of it."""
    if options.method == "copy":
        return "asked for"
    if captured.subreaper or pid == 1:
        return "the snapshot child would become the target's own: it adopts orphans (PR_SET_CHILD_SUBREAPER)"
    return ""


def _snapshot(stack: ExitStack, state: Frozen, stubs: Injector, captured: Capture, objects: ObjectNumbers,
              *, must: bool) -> _Taken | None:
    """Make the snapshot child; None if the kernel makes none."""
    try:
        child = stack.enter_context(snapshot(state, stubs, captured.entries))
    except NativeError as error:
        if error.operation != "clone" or must:
            raise
        return None
    copied = [(runs, pages.copy(state.memory, runs))
              for entry in captured.private_entries
              if entry.start in captured.known.wiped and (runs := pages.private_runs(state.pid, [entry]))]
    return _Taken(captured, objects, Memories(copied, child), "snapshot", "the target runs on while its memory is read")


def _copy(state: Frozen, stubs: Injector, captured: Capture, objects: ObjectNumbers, reason: str) -> _Taken:
    """Copy all private memory now; needs as much of ours."""
    stubs.unmap_area(state.pid, state.registers)
    attributes = Attributes.ask(TargetAsker(stubs, state.pid, state.registers))
    state.relax()
    flags = procfs.vm_flags(state.pid)
    runs = pages.private_runs(state.pid, captured.entries)
    memories = Memories([(runs, pages.copy(state.memory, runs))] if runs else [])
    state.hurry()
    return _Taken(captured, objects, memories, "copy", reason, attributes, flags)


def _written(state: Frozen, taken: _Taken, sink: DescriptorSink, before: Known | None, *, hold: bool) -> Dumped:
    """Let the target go unless it is to be held, and write the image.

    Raises:
        _ChangedError: what was known before the stop did not hold in it; nothing was written.
    """
    pid, captured = state.pid, taken.capture
    stop_seconds = time.monotonic() - state.frozen_at
    if hold:
        state.relax()
    else:
        state.thaw()
        stop_seconds = state.stop_seconds
    if child := taken.memories.child:
        child.detach_itself()
        taken.attributes = Attributes.ask(child.asker)
        taken.flags = _flags(captured, procfs.vm_flags(child.pid))
    assert taken.attributes is not None  # noqa: S101
    assert taken.flags is not None  # noqa: S101
    if before and not before.holds(pid):
        raise _ChangedError
    threads = capturing.threads(captured, state.memory)
    header = current_header()
    writer = ImageWriter(sink)
    writer.header(header)
    space = layout.dump(pid, captured.entries, captured.stat, taken.attributes.brk, taken.flags, captured.shared,
                        captured.files.mapped, taken.objects)
    write_records(writer, pid, captured, threads, space, taken.attributes)
    pump = pages.PagePump(writer)
    for identity, record in space.shared.items():
        pump.shared(record.objref, captured.shared[identity])
    for content in captured.files.contents.values():
        pump.shared(content.record.objref, content.copied)
    taken.memories.pump(pump, pid, captured.entries, sink)
    writer.finish()
    return Dumped(captured, taken.method, taken.reason, pump.memory_bytes, writer.offset, stop_seconds,
                  captured.clocks_ns[0], header.to_json())


def _flags(captured: Capture, inherited: dict[int, str]) -> dict[int, str]:
    """Return the VmFlags of all areas: those of the child's, with what a fork drops, and of those that it lacks.

    Raises:
        _ChangedError: the child lacks an area or sees it empty (MADV_DONTFORK, MADV_WIPEONFORK) that was not yet so
            before the stop, and was not copied.
    """
    known = captured.known
    flags = dict(known.flags)
    for start, words in inherited.items():
        if "wf" in words.split() and start not in known.wiped:
            raise _ChangedError
        dropped = _DROPPED_BY_FORK & set(flags.get(start, "").split())
        flags[start] = " ".join([words, *sorted(dropped)])
    if {entry.start for entry in captured.private_entries} - inherited.keys() - known.wiped:
        raise _ChangedError
    return flags
