"""Memory of which so little has to be copied that this is done in the stop: a snapshot child would take longer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.engine.userspace.mem import pages
from crd.engine.userspace.mem.changes import Changes
from crd.engine.userspace.mem.memories import Memories
from crd.engine.userspace.mem.runs import total
from crd.engine.userspace.mem.shared import Reserve
from crd.native.pagemap import PageMap

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from crd.engine.userspace.mem.runs import Run
    from crd.engine.userspace.mem.tracking import Tracking
    from crd.native.memory import Memory

REASON = "it has little memory of its own, which is copied in less time than a snapshot child is made"
_LITTLE_KIB = 1024
_GROWTH_BYTES = 64 << 10
"""By so much a little memory may have grown before it is copied."""
_OWN_MEMORY = re.compile(r"^(?:RssAnon|VmSwap):\s*(\d+) kB$", re.MULTILINE)


def own_bytes(status: str) -> int:
    """Return how much memory a process has of its own if that is little, as its status says; -1 if it is not.

    The text is not parsed as a whole: that takes longer than all of this.
    """
    found = _OWN_MEMORY.findall(status)
    kib = sum(map(int, found))
    return kib << 10 if len(found) == 2 and kib <= _LITTLE_KIB else -1


def reserve(own: Iterable[int], notes: Iterable[Tracking]) -> Reserve:
    """Return room for what will be copied in the stop, about; raises as ``shared.room``.

    Args:
        own: of processes without notes, as of ``own_bytes``.
        notes: of the others.
    """
    return Reserve(sum(size + _GROWTH_BYTES for size in own if size >= 0) + sum(one.rest_bytes for one in notes))


@dataclass(frozen=True, slots=True)
class Copied:
    """Memory that was copied, with guard regions found meanwhile, and how and why as of ``Taken``."""

    memories: Memories | Changes
    guards: list[Run]
    method: str
    reason: str


def copy(memory: Memory, areas: Sequence[Run], notes: Tracking | None, room: Reserve) -> Copied:
    """Copy what there is to copy of a stopped process; raises as ``pages.copy``.

    Args:
        memory: of the process.
        areas: private ones.
        notes: if there are any, only what was written since the last look before the stop is left.
        room: for it.
    """
    if notes:
        return _written(memory, notes, room)
    runs, guards, content = pages.copy_little(memory, areas, room)
    return Copied(Memories([(runs, content)] if runs else []), guards, "copy", REASON)


def _written(memory: Memory, notes: Tracking, room: Reserve) -> Copied:
    assert notes.last  # noqa: S101
    with PageMap(memory.pid) as pagemap:
        written = notes.last.written(pagemap)
    runs = written.pages
    copied = [(runs, pages.copy(memory, runs, room, just_written=True))] if runs else []
    return Copied(Changes(notes, copied), [*written.guards], "precopy",
                  f"{notes.copied_bytes >> 20} MiB that were written since the last image were copied before the stop, "
                  f"{total(runs) >> 10} KiB in it")
