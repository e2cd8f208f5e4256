"""Notes of what processes write, kept from one image to the next by whoever holds their descriptors."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crd.engine.userspace import capture as capturing
from crd.engine.userspace import dispatch
from crd.engine.userspace.mem.areas import Areas
from crd.engine.userspace.mem.tracking import Tracking
from crd.engine.userspace.tree import frozen
from crd.errors import EngineError, TargetError
from crd.native import tracking
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crd.engine.userspace.capture import Known
    from crd.engine.userspace.freeze import Frozen

_WORTH_BYTES = 8 << 20
"""Of anonymous memory: less is read as quickly as the notes are."""
_PROCESSES_MAX = 64
"""Whose descriptors fit into one message (SCM_MAX_FD is 253)."""
_FREEZE_SECONDS = 1.0

ProcessKey = tuple[int, int]
"""Pid and start time (field 22 of its stat): together they name a process for ever."""


@dataclass(slots=True)
class WriteNotes:
    """Of all processes of a target.

    Attributes:
        held: our userfaultfd of each process; after a checkpoint, of each whose writes since are noted.
        since: what was noted goes back to an image that whoever reads the next one has.
    """

    held: dict[ProcessKey, int] = field(default_factory=dict)
    since: bool = False

    def close(self) -> None:
        """End all notes that nobody else holds."""
        while self.held:
            os.close(self.held.popitem()[1])

    def prepare(self, before: Mapping[int, Known], seconds: float) -> dict[int, Tracking]:
        """Bring the notes up to date while the processes run, and begin them where it is worth while.

        Args:
            before: the processes that were looked at.
            seconds: how long a process may take to stop: for its first notes it is, for an instant.

        Returns:
            The notes by pid.  Where there are none, all memory is read.
        """
        found: dict[int, Tracking] = {}
        for pid, known in before.items():
            with suppress(TargetError, EngineError):
                key, size = _look(pid)
                since = self.since and key in self.held
                if key not in self.held:
                    if size < _WORTH_BYTES or len(self.held) >= _PROCESSES_MAX:
                        continue
                    self.held[key] = _begin(pid, min(seconds, _FREEZE_SECONDS))
                notes = Tracking(pid, self.held[key], size, since)
                notes.prepare(known.entries, known.wiped)
                found[pid] = notes
        return found

    def keep(self, found: Mapping[int, Tracking]) -> None:
        """End the notes of processes that are gone, or that wrote so much that these were of no use."""
        useful = {key for key in self.held if (notes := found.get(key[0])) and notes.is_useful()
                  and notes.userfaultfd == self.held[key]}
        for key in self.held.keys() - useful:
            os.close(self.held.pop(key))


def _look(pid: int) -> tuple[ProcessKey, int]:
    """Return who a process is, and bytes of its anonymous memory."""
    return (pid, procfs.stat(pid).start_time), int(procfs.status(pid)["RssAnon"].split()[0]) << 10


def _begin(pid: int, seconds: float) -> int:
    """Stop a process for an instant, and take a userfaultfd of it.

    Raises:
        EngineError, TargetError: it can have none.
    """
    with frozen(pid, seconds, descendants=False) as tree:
        return _borrow(tree.root)


def _borrow(state: Frozen) -> int:
    pid = state.pid
    stubs = capturing.injector(state, Areas.of(pid))
    if state.group.confined() or dispatch.obstructed(state) or any(map(stubs.inside, state.group.addresses())):
        raise EngineError("no stub may be run now")
    used = {*procfs.fd_numbers(pid)}
    free = next(fd for fd in range(len(used) + 1) if fd not in used)
    return tracking.borrow(stubs, pid, state.registers, free)
