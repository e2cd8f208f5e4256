"""What all threads of the stopped target are asked: all at once, or where that cannot be one by one."""

from __future__ import annotations

import mmap
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.engine.userspace.questions import TargetAsker, answered, calls, scratch_bytes
from crd.engine.userspace.snapshot import gap
from crd.errors import FeatureMissing, InjectionInterrupted
from crd.native.detour import check_ways, take
from crd.native.room import Area
from crd.native.survey import CallTable, Survey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from crd.engine.userspace.freeze import Frozen
    from crd.engine.userspace.mem.areas import Areas
    from crd.engine.userspace.questions import Answer, Question
    from crd.native.detour import Detour
    from crd.native.inject import Injector


class Questionnaire:
    """Questions about each thread, and about the process.

    Attributes:
        about_thread, about_process: the questions.
        table: all of them, those about the thread first.
    """

    def __init__(self, about_thread: Sequence[Question], about_process: Sequence[Question]) -> None:
        """Translate questions, once and not in the stop."""
        self.about_thread, self.about_process = about_thread, about_process
        self.table = CallTable(calls([*about_thread, *about_process]), len(about_thread), scratch_bytes)


class Interview:
    """The answers of a process and of each of its threads, which had better be looked at when it runs again.

    Attributes:
        of_process: returns those to the questions about the process, from the first up to an end.
        of_thread: returns those of a thread.
    """

    def __init__(self, of_process: Callable[[int | None], list[Answer]],
                 of_thread: Callable[[int], list[Answer]]) -> None:
        """Keep the answers."""
        self.of_process = of_process
        self.of_thread = of_thread


@dataclass(slots=True, eq=False)
class Asked:
    """A stopped process that is to be asked.

    Attributes:
        state: the process.
        stubs: for system calls in it.
        entries: its areas.
        questions: for it.
        at_once: its threads may be asked at the same time, in an area that is mapped for that.
        told: what it says, once it was asked.
    """

    state: Frozen
    stubs: Injector
    entries: Areas
    questions: Questionnaire
    at_once: bool
    told: Interview | None = None


def interview(processes: Sequence[Asked]) -> None:
    """Ask the leaders about their processes, and every thread about itself, all at once.  Areas may stay mapped.

    Raises:
        FeatureMissing: a stub cannot bring a thread home.
        InjectionInterrupted: try again after letting go.
    """
    for one, survey in _surveyed(_with_areas([one for one in processes if one.at_once])):
        one.told = _interview(one, survey)
    for one in processes:
        one.told = one.told or _one_by_one(one)


def _interview(one: Asked, survey: Survey) -> Interview:
    n, tids = len(one.questions.about_thread), one.state.group.tids
    return Interview(lambda end: answered(survey.result(0), n, end and n + end),
                     lambda tid: answered(survey.result(tids.index(tid)), 0, n))


def _one_by_one(one: Asked) -> Interview:
    """Ask where an area for all is not to be had."""
    state = one.state
    of_process = TargetAsker(one.stubs, state.pid, state.registers).ask(one.questions.about_process)
    of_threads = {tid: TargetAsker(one.stubs, tid, state.group.registers(tid)).ask(one.questions.about_thread)
                  for tid in state.group.tids}
    return Interview(lambda end: of_process[:end], of_threads.__getitem__)


def _with_areas(processes: Sequence[Asked]) -> list[tuple[Asked, Survey, Area]]:
    """Have processes map an area each; return those that could."""
    page = mmap.PAGESIZE  # on both sides, or the kernel would join it with a neighbour
    planned, detours = [], []
    for one in processes:
        with suppress(FeatureMissing):
            check_ways(one.state.group)
            survey = Survey(one.state.group, one.questions.table)
            start = gap([(entry.start, entry.end) for entry in one.entries], survey.area_bytes + 2 * page) + page
            planned.append((one, survey, Area(start, survey.area_bytes)))
            detours.append((one, one.stubs.mapping(one.state.group, planned[-1][2], survey.data_bytes)))
    lacking = _taken(detours)
    for one in lacking:
        one.stubs.unmap_area(one.state.pid, one.state.registers)
    return [plan for plan in planned if plan[0] not in lacking]


def _surveyed(planned: Sequence[tuple[Asked, Survey, Area]]) -> Iterator[tuple[Asked, Survey]]:
    """Take all threads through the areas of their processes."""
    if late := _taken([(one, survey.fill(one.state.memory, area.start)) for one, survey, area in planned]):
        raise _too_slow(late[0])
    for one, survey, _ in planned:
        survey.collect()
        yield one, survey


def end_areas(processes: Sequence[Asked]) -> None:
    """Unmap the areas that are left.

    Raises:
        InjectionInterrupted: try again after letting go.
    """
    left = [(one, detour) for one in processes if (detour := one.stubs.unmapping(one.state.group))]
    if late := _taken(left):
        raise _too_slow(late[0])
    for one, _ in left:
        one.stubs.forget_area()


def _taken(detours: Sequence[tuple[Asked, Detour]]) -> list[Asked]:
    """Take detours; return those processes that are back without having done what they were sent for.

    Raises:
        InjectionInterrupted: try again after letting go.
    """
    take([detour for _, detour in detours])
    for one, detour in detours:
        if not detour.is_back:
            one.stubs.leave_area()  # some thread may be in it
    return [one for one, detour in detours if not detour.check()]


def _too_slow(one: Asked) -> InjectionInterrupted:
    return InjectionInterrupted(f"process {one.state.pid} was too slow", signal=0, tid=one.state.pid)
