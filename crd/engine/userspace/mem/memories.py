"""Where the private pages of a process come from: copies made during the stop, its snapshot child for the rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crd.engine.userspace.mem import handover, pages

if TYPE_CHECKING:
    from crd.engine.stream import DescriptorSink
    from crd.engine.userspace.mem.runs import Run
    from crd.engine.userspace.snapshot import Snapshot
    from crd.target.procfs import MapEntry


@dataclass(slots=True)
class Memories:
    """Of one process; ``child`` None: everything was copied."""

    copied: list[tuple[list[Run], memoryview]] = field(default_factory=list)
    child: Snapshot | None = None

    def kept_guards(self) -> list[Run]:
        """Return none: no guard region was known before."""
        return []

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
        others: list[tuple[list[Run], memoryview | None]] = [*self.copied, *(([run], None) for run in closed)]
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

    def _has_copy(self, run: Run) -> bool:
        return any(runs[0][0] <= run[0] < runs[-1][0] + runs[-1][1] for runs, _ in self.copied)
