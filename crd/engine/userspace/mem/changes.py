"""What a process has written since its last image, wherever the content of that is now."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

from crd.engine.userspace.mem.runs import common, joined, without
from crd.image.since import records
from crd.native.pagemap import PageMap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.engine.stream import DescriptorSink
    from crd.engine.userspace.mem.looks import Present
    from crd.engine.userspace.mem.pages import PagePump
    from crd.engine.userspace.mem.runs import Run
    from crd.engine.userspace.mem.tracking import Tracking
    from crd.engine.userspace.snapshot import Snapshot
    from crd.native.memory import Memory
    from crd.target.procfs import MapEntry

Copy = tuple[list["Run"], memoryview]
"""Runs, and their content packed one after the other."""


@dataclass(frozen=True)
class Changes:
    """Of one process.

    Attributes:
        notes: what was found before and in the stop.
        copied: in the stop.
        child: has what was not copied; None: everything was, before the stop or in it.
    """

    notes: Tracking
    copied: list[Copy]
    child: Snapshot | None = None

    def kept_guards(self) -> list[Run]:
        """Return the guard regions that are what they were; with a child that tells them, none."""
        return [] if self.child else self._kept.guards

    @cached_property
    def _kept(self) -> Present:
        assert self.notes.last  # noqa: S101
        return self.notes.last.kept()

    def pump(self, pump: PagePump, pid: int, entries: Sequence[MapEntry], sink: DescriptorSink) -> None:  # noqa: ARG002
        """Tell what was written, and of the rest that it was not."""
        before = joined(chain.from_iterable(self.notes.written))
        last = self.notes.last
        assert last  # noqa: S101
        there = self._kept.pages
        if self.child:
            with PageMap(self.child.pid) as pagemap:
                written = last.written(pagemap).pages
            source = Source(self.child.memory, self.copied)
        else:
            written = joined(chain.from_iterable(runs for runs, _ in self.copied))
            source = Source(None, _newest([*self.notes.copies, *self.copied]))
        new = joined(chain(written, common(before, there)))
        for record in records(pid, without(there, before), new):
            pump.changed(record, source.read)


def _newest(copies: Sequence[Copy]) -> list[Copy]:
    """Cut from each copy what a later one has."""
    later: list[Run] = []
    found: list[Copy] = []
    for runs, content in reversed(copies):
        own, at = without(runs, later), 0
        offsets = []
        for start, length in runs:
            offsets.append((start, at))
            at += length
        for start, length in own:
            first, offset = offsets[bisect_right(offsets, (start, at)) - 1]
            begin = offset + start - first
            found.append(([(start, length)], content[begin:begin + length]))
        later = joined(chain(later, runs))
    return found


class Source:
    """The content of pages: copies, and the memory of a child for what no copy has."""

    def __init__(self, memory: Memory | None, copies: Sequence[Copy]) -> None:
        """Read from these; no two copies have the same page."""
        self._memory = memory
        self._parts: list[tuple[int, int, memoryview]] = []
        for runs, content in copies:
            at = 0
            for start, length in runs:
                self._parts.append((start, start + length, content[at:at + length]))
                at += length
        self._parts.sort(key=lambda part: part[0])
        self._starts = [start for start, _, _ in self._parts]

    def read(self, runs: Sequence[Run], buffer: memoryview) -> None:
        """Read runs, packed one after the other; raises as ``Memory.read_runs``."""
        at = 0
        for start, length in runs:
            end = start + length
            while start < end:
                copy_start, copy_end, content = self._at(start)
                stop = min(end, copy_end)
                if content is None:
                    assert self._memory, f"nobody has page {start:#x}"  # noqa: S101
                    self._memory.read_runs([(start, stop - start)], buffer[at:at + stop - start])
                else:
                    buffer[at:at + stop - start] = content[start - copy_start:stop - copy_start]
                at, start = at + stop - start, stop  # noqa: PLW2901

    def _at(self, address: int) -> tuple[int, int, memoryview | None]:
        """Return start, end and content of the copy at an address, or of the gap between copies."""
        index = bisect_right(self._starts, address) - 1
        if index >= 0 and address < self._parts[index][1]:
            return self._parts[index]
        following = self._starts[index + 1] if index + 1 < len(self._starts) else 1 << 64
        return address, following, None
