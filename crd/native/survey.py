"""System calls in all threads of a live target at once, by stubs in an area that is mapped for the while.

A script (``inject.py``) is complete in itself: whenever its tracer dies, nothing stays behind.  But it takes its thread
through a dozen stops, one thread after the other.  A survey takes all threads through two at the same time.  Its stubs,
too, bring their threads home alone; but the area they lie in has to stay until all are out, so if the tracer dies in
these few milliseconds it stays mapped.  The next tracer removes it.
"""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING

from crd.errors import FeatureMissing, InjectionInterrupted
from crd.native.ffi import ffi, lib
from crd.native.inject import CALL_BYTES, ScriptResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crd.native.inject import Call
    from crd.native.memory import Memory
    from crd.native.threads import ThreadGroup

_PATIENCE_NS = 100_000_000


class Survey:
    """The same calls in many threads; more of them in the first one.

    Attributes:
        area_bytes: of the area it needs.
        data_bytes: of the area's beginning, which is to be writable.
    """

    def __init__(self, group: ThreadGroup, calls: Sequence[Call], n_calls_others: int,
                 scratch_bytes: Callable[[int], int]) -> None:
        """Plan a survey.

        Args:
            group: the threads, which have been read.
            calls: of the first thread.
            n_calls_others: so many of them are for the others, too.
            scratch_bytes: of a thread that makes so many calls, for results and whatever the calls point to; see
                ``Injector.script``.
        """
        self._group = group
        self._calls = calls
        self._n_calls_others = n_calls_others
        self._head_bytes = -(-len(group) * 4 // 64) * 64
        self._first_bytes, self._other_bytes = (n * CALL_BYTES + scratch_bytes(n) for n in (len(calls), n_calls_others))
        self._slot_bytes = (lib.crd_stub_survey_code().length + 15) & ~15
        self.data_bytes = _whole_pages(self._head_bytes + self._first_bytes + (len(group) - 1) * self._other_bytes)
        self.area_bytes = self.data_bytes + _whole_pages(len(group) * self._slot_bytes)

    def check(self) -> None:
        """Make sure that stubs can bring all threads home.

        Raises:
            FeatureMissing: they cannot.
            InjectionInterrupted: a signal is due; try again after letting go.
        """
        stop = self._group.obstructed()
        if stop and stop.is_signal:
            raise InjectionInterrupted(f"signal {stop.signal} is due for task {stop.tid}", signal=stop.signal,
                                       tid=stop.tid)
        if stop:
            raise FeatureMissing(f"no stub can bring thread {stop.tid} home", tid=stop.tid)

    def carry_out(self, memory: Memory, start: int) -> None:
        """Make the calls.

        Args:
            memory: of the process.
            start: of the area (``Injector.area``), of ``area_bytes``.  If this raises it has to stay mapped, since some
                thread may be in it.

        Raises:
            InjectionInterrupted: a thread has ended, or gone home alone; try again after letting go.
            NativeError: the area cannot be written.
        """
        words = [word for asked in self._calls for word in asked.words(0)]
        calls, relative = ffi.new("uint64_t[]", words), ffi.new("unsigned char[]", [
            flag for asked in self._calls for flag in asked.relative()])
        survey = ffi.new("struct crd_survey *", {
            "slots": start + self.data_bytes, "slot_bytes": self._slot_bytes, "data": start,
            "head_bytes": self._head_bytes, "first_bytes": self._first_bytes, "data_bytes": self._other_bytes,
            "calls": calls, "relative": relative, "n_calls": len(self._calls),
            "n_calls_others": self._n_calls_others, "patience_ns": _PATIENCE_NS})
        group, n = self._group.c, len(self._group)
        content = bytearray(self.area_bytes)
        area = ffi.from_buffer(content)
        lib.crd_survey_fill(survey, group, n, area + self.data_bytes, area)
        memory.write(start, content)
        if lib.crd_survey_run(survey, group, n, memory.pid) < n:
            raise InjectionInterrupted("a thread was killed, or we were too slow", signal=0, tid=self._group.tids[0])
        self._data = memory.read(start, self.data_bytes)

    def result(self, index: int) -> ScriptResult:
        """Return what the calls of a thread returned."""
        if index:
            n, end = self._n_calls_others, self._head_bytes + self._first_bytes + index * self._other_bytes
        else:
            n, end = len(self._calls), self._head_bytes + self._first_bytes
        scratch = self._data[end - (self._other_bytes if index else self._first_bytes) + n * CALL_BYTES:end]
        return ScriptResult(struct.unpack_from(f"<{n}q", scratch), scratch)


def _whole_pages(length: int) -> int:
    return -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
