"""The memory of an image, put where it belongs as it streams in.

A process whose memory is complete makes the children that inherit of it.  What a child has so already is not written
again, so that it stays shared; the image need not say which pages these are.
"""

from __future__ import annotations

import os
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING

from crd.engine.userspace.mem import huge
from crd.engine.userspace.mem.pages import selected
from crd.engine.userspace.mem.restore import map_areas
from crd.engine.userspace.mem.runs import joined, without
from crd.errors import MemoryFault, RestartError
from crd.image.objects import UNNAMED_HUGE, FileContent
from crd.image.profile import PAGE_BYTES, Pages, SharedPages
from crd.native.memory import process_write_runs
from crd.native.pagemap import PageMap
from crd.native.syscall import NR

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from crd.engine.userspace.fds.kind import Making
    from crd.engine.userspace.mem.homes import Homes
    from crd.engine.userspace.mem.runs import Run
    from crd.engine.userspace.plan import Plan
    from crd.engine.userspace.skeleton import Skeleton
    from crd.engine.userspace.vessel import Vessel
    from crd.image.codec import Record

_MADV_DONTNEED = 4


class Filling:
    """The vessels of a skeleton on their way to the memory of their processes."""

    def __init__(self, making: Making, plans: Sequence[Plan], skeleton: Skeleton, homes: Homes) -> None:
        """Prepare to fill them, parents before children."""
        self._making = making
        self._plans = plans
        self._skeleton = skeleton
        self._homes = homes
        self._incomplete = deque(plans)
        self._kept: dict[int, list[Run]] = {}  # of each process that has its areas: what it has inherited
        self._told: dict[int, list[Run]] = {}  # of those with any: the pages that have come

    def run(self, first: Record | None, records: Iterable[Record]) -> None:
        """Map all areas, and fill them.

        Args:
            first: of the memory records.
            records: the others.

        Raises:
            ImageError: the stream is damaged or ends too early.
            RestartError: memory could not be mapped or written, or a process could not be made.
        """
        self._map()
        for record in chain([first] if first else [], records):
            if isinstance(record, SharedPages):
                self._write_shared(record)
            elif isinstance(record, Pages):
                self._write(record)
            else:
                raise RestartError(f"{type(record).__name__} among the memory of the image")
        while self._incomplete:
            self._complete()

    def _map(self) -> None:
        """Map the areas of all processes that have come to life since."""
        for plan in self._plans:
            if plan.pid in self._skeleton.vessels and plan.pid not in self._kept:
                self._making.turn_to(plan)
                self._kept[plan.pid] = map_areas(self._making, self._homes)

    def _vessel(self, pid: int) -> Vessel:
        """Return the vessel of a process; those that have none yet cannot wait for the memory of others any longer."""
        if pid not in self._kept:
            self._skeleton.complete()
            self._map()
        return self._skeleton[pid]

    def _complete(self) -> None:
        """Take from a process what it has inherited and not been told of, and have it make its children."""
        pid = self._incomplete.popleft().pid
        vessel = self._vessel(pid)
        if kept := self._kept[pid]:
            with PageMap(vessel.pid) as pagemap:
                there = joined(pagemap.own_pages(kept))
            for start, length in without(there, joined(self._told.get(pid, ()))):
                vessel.batch.call(NR.MADVISE, start, length, _MADV_DONTNEED, what=f"emptying {start:#x}")
                vessel.flush()
            vessel.run()
        if self._skeleton.grow(pid):
            self._map()

    def _write(self, record: Pages) -> None:
        if any(plan.pid == record.pid for plan in self._incomplete):
            while self._incomplete[0].pid != record.pid:  # those before it are complete, if all come in order
                self._complete()
        vessel, runs, data = self._vessel(record.pid), _runs(record), record.data
        if self._kept[record.pid]:
            self._told.setdefault(record.pid, []).extend(runs)
            differing, parts = selected(runs, data, vessel.memory.differing_pages(runs, data))
            runs = [(run.address, run.pages * PAGE_BYTES) for run in differing]
            data = memoryview(b"".join(parts)) if len(parts) != 1 else parts[0]
        try:
            process_write_runs(vessel.pid, runs, data)
        except MemoryFault:  # part of it is not writable for the process itself
            vessel.memory.write_runs(runs, data)

    def _write_shared(self, record: SharedPages) -> None:
        making, objref = self._making, record.objref
        if objref in making.contents:
            _write_file(making, record)
        elif not isinstance(making.plan.objects[objref], FileContent):  # of a file that stays as it is
            base = (making.segments[objref] if objref in making.segments else self._homes[objref]).address
            process_write_runs(os.getpid(), [(base + at, length) for at, length in _runs(record)], record.data)


def _runs(record: Pages | SharedPages) -> list[Run]:
    return [(run.address, run.pages * PAGE_BYTES) for run in record.runs]


def _write_file(making: Making, record: SharedPages) -> None:
    """Write whole pages into a file, but for what is behind its end."""
    fd, file, at = making.contents[record.objref], making.plan.objects[record.objref], 0
    if getattr(file, "kind", 0) == UNNAMED_HUGE:
        huge.write_file(fd, _runs(record), record.data)
        return
    for start, length in _runs(record):
        wanted = min(length, file.size - start)
        if os.pwrite(fd, record.data[at:at + wanted], start) != wanted:
            raise RestartError("there is no room for the content of a deleted file")
        at += length
