"""Detours: threads of many processes that go through stubs which wait for us at their end, all at the same time.

What one thread does while it is waited for costs no time of another (``csrc/survey.c``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crd.errors import FeatureMissing, InjectionInterrupted
from crd.native.ffi import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.native.threads import ThreadGroup
    from crd.native.tracee import Stop

PATIENCE_NS = 100_000_000
"""How long a thread waits for its tracer before it goes home alone."""


class Detour:
    """Threads of one stopped process, each with a stub to go through."""

    def __init__(self, pid: int, group: ThreadGroup, n: int, **fields: Any) -> None:
        """Plan it for the first n threads of a group, which have been read; ``fields`` of ``struct crd_survey``."""
        self._tid = group.tids[0]
        self._group = group  # which is pointed to
        self._fields = fields
        self.c = ffi.new("struct crd_survey *", {"pid": pid, "threads": group.c, "n": n, "patience_ns": PATIENCE_NS,
                                                 **fields})

    @property
    def is_back(self) -> bool:
        """Whether all threads are back."""
        return bool(self.c.n_home + self.c.n_late == self.c.n)

    def check(self) -> bool:
        """Make sure that all threads are back, and return whether they have done what they were sent for.

        Raises:
            InjectionInterrupted: one has ended, or gone home alone, or a signal is due for it; try again after letting
                go.
        """
        if not self.is_back:
            raise InjectionInterrupted("a thread was killed, or we were too slow", signal=0, tid=self._tid)
        if (stop := self._group.obstructed()) and stop.is_signal:
            raise _is_due(stop)
        return not self.c.n_late


def check_ways(group: ThreadGroup) -> None:
    """Make sure that stubs can bring all threads of a group home.

    Raises:
        FeatureMissing: they cannot.
        InjectionInterrupted: a signal is due; try again after letting go.
    """
    stop = group.obstructed()
    if stop and stop.is_signal:
        raise _is_due(stop)
    if stop:
        raise FeatureMissing(f"no stub can bring thread {stop.tid} home", tid=stop.tid)


def _is_due(stop: Stop) -> InjectionInterrupted:
    return InjectionInterrupted(f"signal {stop.signal} is due for task {stop.tid}", signal=stop.signal, tid=stop.tid)


def take(detours: Sequence[Detour]) -> None:
    """Take all threads through their stubs, and back to where they were; ``check`` says how it went."""
    together = ffi.new("struct crd_survey[]", [one.c[0] for one in detours])
    lib.crd_surveys_run(together, len(detours))
    for one, went in zip(detours, together, strict=True):
        one.c.n_home, one.c.n_late = went.n_home, went.n_late
