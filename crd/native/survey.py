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

from crd.native.detour import Detour
from crd.native.ffi import ffi, lib
from crd.native.inject import CALL_BYTES, ScriptResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crd.native.inject import Call
    from crd.native.memory import Memory
    from crd.native.threads import ThreadGroup


class CallTable:
    """The calls of surveys, as their stubs take them: made once.

    Attributes:
        n: calls of a first thread.
        n_others: so many of them are for the others, too.
        first_bytes, other_bytes: of the calls, and of what they write, of a first thread and of another one.
    """

    def __init__(self, calls: Sequence[Call], n_others: int, scratch_bytes: Callable[[int], int]) -> None:
        """Translate calls.

        Args:
            calls: of a first thread.
            n_others: so many of them are for the others, too.
            scratch_bytes: of a thread that makes so many calls, for results and whatever the calls point to; see
                ``Injector.script``.
        """
        self.n, self.n_others = len(calls), n_others
        self.first_bytes, self.other_bytes = (n * CALL_BYTES + scratch_bytes(n) for n in (self.n, n_others))
        self.words = ffi.new("uint64_t[]", [word for asked in calls for word in asked.words(0)])
        self.relative = ffi.new("unsigned char[]", [flag for asked in calls for flag in asked.relative()])


class Survey:
    """A detour on which all threads of a process make the same calls, and the first one more of them.

    Attributes:
        area_bytes: of the area it needs.
        data_bytes: of the area's beginning, which is to be writable.
    """

    def __init__(self, group: ThreadGroup, table: CallTable) -> None:
        """Plan a survey of threads that have been read."""
        self._group = group
        self._table = table
        self._head_bytes = -(-len(group) * 4 // 64) * 64
        self._slot_bytes = (lib.crd_stub_survey_code().length + 15) & ~15
        self.data_bytes = _whole_pages(self._head_bytes + table.first_bytes + (len(group) - 1) * table.other_bytes)
        self.area_bytes = self.data_bytes + _whole_pages(len(group) * self._slot_bytes)

    def fill(self, memory: Memory, start: int) -> Detour:
        """Write stubs and calls into the target, and return the way through them.

        Args:
            memory: of the process.
            start: of the area (``Injector.mapping``), of ``area_bytes``.

        Raises:
            NativeError: the area cannot be written.
        """
        table = self._table
        self._memory, self._start = memory, start
        detour = Detour(
            memory.pid, self._group, len(self._group), slots=start + self.data_bytes, slot_bytes=self._slot_bytes,
            data=start, head_bytes=self._head_bytes, first_bytes=table.first_bytes, data_bytes=table.other_bytes,
            calls=table.words, relative=table.relative, n_calls=table.n, n_calls_others=table.n_others)
        content = bytearray(self.area_bytes)
        area = ffi.from_buffer(content)
        lib.crd_survey_fill(detour.c, area + self.data_bytes, area)
        memory.write(start, content)
        return detour

    def collect(self) -> None:
        """Read what the calls returned, when all threads are back."""
        self._data = self._memory.read(self._start, self.data_bytes)

    def result(self, index: int) -> ScriptResult:
        """Return what the calls of a thread returned."""
        table = self._table
        n, length = (table.n_others, table.other_bytes) if index else (table.n, table.first_bytes)
        end = self._head_bytes + table.first_bytes + index * table.other_bytes
        scratch = self._data[end - length + n * CALL_BYTES:end]
        return ScriptResult(struct.unpack_from(f"<{n}q", scratch), scratch)


def _whole_pages(length: int) -> int:
    return -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
