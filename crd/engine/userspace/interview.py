"""What all threads of the stopped target are asked: one by stubs complete in themselves, many all at once."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from crd.engine.userspace.questions import TargetAsker, answered, calls, scratch_bytes
from crd.engine.userspace.snapshot import gap
from crd.errors import FeatureMissing, InjectionInterrupted
from crd.native.room import Area
from crd.native.survey import Survey

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crd.engine.userspace.freeze import Frozen
    from crd.engine.userspace.questions import Answer, Question
    from crd.native.inject import Injector
    from crd.target.procfs import MapEntry


_FEW = 8
"""Questions that one thread is asked by itself in less time than an area is mapped for."""


class Interview:
    """The answers of a process and of each of its threads."""

    def __init__(self, of_process: list[Answer], of_thread: Callable[[int], list[Answer]]) -> None:
        """Keep the answers; those of threads are looked at only when the target runs again."""
        self.of_process = of_process
        self.of_thread = of_thread


def interview(state: Frozen, stubs: Injector, entries: Sequence[MapEntry], about_thread: Sequence[Question],
              about_process: Sequence[Question], *, at_once: bool) -> Interview:
    """Ask the leader about its process, and every thread about itself.  An area may stay mapped.

    With ``at_once`` all may be asked at the same time.

    Raises:
        FeatureMissing: a stub cannot bring a thread home.
        InjectionInterrupted: try again after letting go.
    """
    if at_once and (len(state.group) > 1 or len(about_process) > _FEW):
        try:
            return _all_at_once(state, stubs, entries, about_thread, about_process)
        except FeatureMissing:
            pass  # an area for all is not to be had: it takes longer
    of_process = TargetAsker(stubs, state.pid, state.registers).ask(about_process)
    of_threads = {tid: TargetAsker(stubs, tid, state.group.registers(tid)).ask(about_thread)
                  for tid in state.group.tids}
    return Interview(of_process, of_threads.__getitem__)


def _all_at_once(state: Frozen, stubs: Injector, entries: Sequence[MapEntry], about_thread: Sequence[Question],
                 about_process: Sequence[Question]) -> Interview:
    questions = [*about_thread, *about_process]
    survey = Survey(state.group, calls(questions), len(about_thread), scratch_bytes)
    survey.check()
    page = mmap.PAGESIZE  # on both sides, or the kernel would join it with a neighbour
    area = Area(gap([(entry.start, entry.end) for entry in entries], survey.area_bytes + 2 * page) + page,
                survey.area_bytes)
    stubs.map_area(state.pid, state.registers, area, survey.data_bytes)
    try:
        survey.carry_out(state.memory, area.start)
    except InjectionInterrupted:
        stubs.leave_area()
        raise
    n, tids = len(about_thread), state.group.tids
    return Interview(answered(survey.result(0))[n:], lambda tid: answered(survey.result(tids.index(tid)))[:n])
