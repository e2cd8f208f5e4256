"""One checkpoint: stop the whole tree, capture it, make snapshots, let go, and write the image."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from crd.engine.api import After
from crd.engine.userspace import capture as capturing
from crd.engine.userspace import confinement, image
from crd.engine.userspace.fds import socket_options, table
from crd.engine.userspace.fds.content import Contents
from crd.engine.userspace.fds.kind import TryLaterError
from crd.engine.userspace.fds.tcp_leaving import Leaving
from crd.engine.userspace.ipc import messages, semaphores
from crd.engine.userspace.mem import layout, little, pages
from crd.engine.userspace.taking import ChangedError, TryAgainError, Whole, complete, take_all
from crd.engine.userspace.tree import frozen
from crd.errors import AccessDenied, FreezeTimeout, TargetError, TargetGone, TargetUnsupported, TraceeGone
from crd.image.header import current_header
from crd.image.writer import ImageWriter
from crd.target.owner import credentials, owner
from crd.target.tree import Family, has_ended
from crd.target.wording import process_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.engine.api import CheckpointOptions
    from crd.engine.stream import DescriptorSink
    from crd.engine.userspace.caller import Caller
    from crd.engine.userspace.capture import Capture, Known
    from crd.engine.userspace.fds.table import FileTable
    from crd.engine.userspace.mem.shared import Reserve
    from crd.engine.userspace.mem.tracking import Tracking
    from crd.engine.userspace.notes import WriteNotes
    from crd.engine.userspace.taking import Taken
    from crd.engine.userspace.tree import FrozenTree, Zombie

_ATTEMPTS = 50
_PAUSE_SECONDS = 0.0005
_LATER_ATTEMPTS = 5
_LATER_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Dumped:
    """A written image: its figures, and the target that may still be stopped; the root's capture is the first.

    ``leaving`` are its connections to other processes, if it is to be killed; ``lost``: see ``FileTable``.
    """

    captures: list[Capture]
    leaving: Leaving | None
    method: str
    method_reason: str
    memory_bytes: int
    image_bytes: int
    stop_seconds: float
    taken_at_ns: int
    header: dict[str, Any]
    lost: tuple[str, ...]


@contextmanager
def dumped(pid: int, sink: DescriptorSink, options: CheckpointOptions, notes: WriteNotes | None = None, *,
           hold: bool, caller: Caller | None = None) -> Iterator[Dumped]:
    """Write the image of a process and, if the options say so, of its descendants.

    Args:
        pid: of the process, in which the preflight has found no obstacles.
        sink: of the image.
        options: of the checkpoint.
        notes: of what is written from one image to the next, which are kept up; None: of no interest.
        hold: keep the target stopped for as long as the context lasts.
        caller: a thread that waits for this checkpoint.  One of the target stays stopped until it has its answer, and
            sees 0 in the image.

    Raises:
        FreezeTimeout: it could not be stopped, or was never in a state to be captured.
        TargetGone: it ended meanwhile.
        TargetUnsupported: it opened or mapped something meanwhile that cannot be restarted.
        AccessDenied: a process of it is of another user than the options allow.
        ImageError, EngineError: the image could not be written.
    """
    look, patience = True, _LATER_ATTEMPTS
    written: dict[int, Tracking] = {}
    at_rest = semaphores.look()
    socket_options.look_anew()
    for _ in _attempts(options.freeze_seconds):
        before = _know(pid, options) if look else {}
        if notes and not written:
            written = notes.prepare(before, options.freeze_seconds)
        room = little.reserve([known.own_bytes for pid, known in before.items() if pid not in written],
                              written.values())
        try:
            with (closing(_looked_at(pid, options)) as contents,
                  frozen(pid, options.freeze_seconds, descendants=options.tree, caller=caller) as tree,
                  ExitStack() as stack):
                parts = _take(stack, tree, before, options, written, room, contents, at_rest)
                written_image = _written(tree, parts, sink, hold=hold)
                if notes:
                    notes.keep(written)
                yield written_image
                return
        except ChangedError:
            look = False  # it changes all the time: what is read in the stop holds
        except TryAgainError:
            time.sleep(_PAUSE_SECONDS)
        except TryLaterError as later:
            if not (patience := patience - 1):
                raise TargetUnsupported(reasons=[later.obstacle], pid=pid) from later
            time.sleep(_LATER_SECONDS)
        except (TraceeGone, TargetGone) as error:  # in the stop only SIGKILL ends a process
            if has_ended(pid):
                raise TargetGone(f"process {pid} ended while it was being checkpointed", pid=pid) from error
            look = False
    raise FreezeTimeout(f"process {pid} was never free of signals long enough to be captured", pid=pid)


def _attempts(seconds: float) -> Iterator[int]:
    """Count attempts: a good number of them, and more until the time is over."""
    deadline = time.monotonic() + seconds
    for attempt in count():
        if attempt >= _ATTEMPTS and time.monotonic() > deadline:
            return
        yield attempt


def _know(pid: int, options: CheckpointOptions) -> dict[int, Known]:
    """Look at the processes before the stop; those that have just begun hardly stay as they are."""
    before = {pid: capturing.know(pid)}
    for other in Family(pid, descendants=options.tree):
        with suppress(TargetError):
            if other != pid and not capturing.is_young(other):
                before[other] = capturing.know(other)
    return before


def _looked_at(pid: int, options: CheckpointOptions) -> Contents:
    """Read the files that are to be saved, if any are."""
    contents = Contents(options.save_files_bytes)
    if options.save_files_bytes:
        contents.look(Family(pid, descendants=options.tree))
    return contents


@dataclass(frozen=True, slots=True)
class _Parts:
    """A target, captured: processes, parents first, and what they share."""

    clocks_ns: tuple[int, int, int]
    processes: list[Taken]
    zombies: list[Zombie]
    files: FileTable
    contents: Contents
    mapped: layout.MappedObjects


def _take(stack: ExitStack, tree: FrozenTree, before: dict[int, Known], options: CheckpointOptions,
          written: dict[int, Tracking], room: Reserve, contents: Contents,
          at_rest: dict[str, set[int]]) -> _Parts:
    """Capture all processes in the stop."""
    _check_owners(tree, options)
    clocks_ns = (time.time_ns(), time.clock_gettime_ns(time.CLOCK_MONOTONIC),
                 time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    mapped = layout.MappedObjects()
    whole = Whole(options, tree.haste, tree.processes, mapped, written, room)
    found = take_all(stack, tree.processes, before, whole)
    captures = [one.capture for one in found]
    own_files = [one.pid for one in captures if not one.shared.files]
    leaving = stack.enter_context(Leaving()) if options.after == After.KILL else None
    files = table.dump(own_files, mapped.numbers, mapped.named, leaving, options.left_out)
    for one in captures:
        capturing.add_unnamed(one, files)
    threads = {pid: list(state.threads) for pid, state in tree.processes.items()}
    files.object_records += [*semaphores.dump(threads, at_rest), *messages.dump(threads)]
    contents.settle(files, {one.pid: one.entries.shared for one in captures})
    return _Parts(clocks_ns, complete(found, whole), list(tree.zombies.values()), files, contents, mapped)


def _check_owners(tree: FrozenTree, options: CheckpointOptions) -> None:
    """Refuse a process that is not of the user for whom the image is."""
    if options.only_uid is None:
        return
    for state in tree.processes.values():
        if owner(credentials(state.status(tid)) for tid in state.threads) != options.only_uid:
            raise AccessDenied(f"{process_name(state.pid)} does not run as uid {options.only_uid} alone, without "
                               "further rights", pid=state.pid)


def _written(tree: FrozenTree, parts: _Parts, sink: DescriptorSink, *, hold: bool) -> Dumped:
    """Let the target go unless it is to be held, and write the image.

    Raises:
        ChangedError: what was known before the stop did not hold in it; nothing was written.
    """
    stop_seconds = time.monotonic() - tree.frozen_at
    if hold:
        tree.haste.relax()
    else:
        tree.thaw()
        stop_seconds = tree.stop_seconds
    processes = []
    for part in parts.processes:
        attributes, flags = part.finish()
        space = layout.dump(part.capture, attributes.brk, flags, part.guards, parts.mapped)
        threads = capturing.threads(part.capture, tree.processes[part.pid].memory, tree.caller)
        processes.append(image.ProcessRecords(part.capture, threads, space, attributes))
    header = current_header()
    writer = ImageWriter(sink)
    writer.header(header)
    saved = parts.contents.finish(parts.mapped)
    filters = confinement.records((part.capture.confined for part in parts.processes), parts.mapped.numbers)
    objects = [*parts.files.object_records, *parts.mapped.files.values(), *parts.mapped.memory_records(),
               *filters.values(), *(content.record for content in saved)]
    image.write_records(writer, parts.clocks_ns, objects, processes, parts.zombies, parts.files, filters)
    pump = pages.PagePump(writer)
    for identity, record in parts.mapped.memories.items():
        pump.shared(record.objref, parts.mapped.copies[identity])
    for unnamed in parts.files.contents.values():
        pump.shared(unnamed.record.objref, unnamed.copied)
    for content in saved:
        if content.copied:
            pump.shared(content.record.objref, content.copied)
    for part in parts.processes:
        part.memories.pump(pump, part.pid, part.capture.entries, sink)
    writer.finish()
    method = next((part for part in parts.processes if part.method == "copy" and part.reason != little.REASON),
                  parts.processes[0])
    return Dumped([part.capture for part in parts.processes], parts.files.leaving, method.method, method.reason,
                  pump.memory_bytes, writer.offset, stop_seconds, parts.clocks_ns[0], header.to_json(),
                  tuple(parts.files.lost))
