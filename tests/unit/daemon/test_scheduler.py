"""When targets are due, with a clock of our own."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from crd.daemon.schedule import Schedule
from crd.daemon.scheduler import ScheduledTarget, Scheduler
from crd.settings.models import TargetSettings

START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class FakeClock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.at = START
        self.set_by = timedelta()
        self._sleepers: list[tuple[datetime, asyncio.Event]] = []

    def now(self) -> datetime:
        return self.at + self.set_by

    def monotonic(self) -> float:
        return self.at.timestamp()

    async def sleep(self, seconds: float) -> None:
        event = asyncio.Event()
        self._sleepers.append((self.at + timedelta(seconds=seconds), event))
        await event.wait()

    async def advance(self, seconds: float, step: float = 1.0) -> None:
        """Move on in steps, and let everybody run after each."""
        end = self.at + timedelta(seconds=seconds)
        while self.at < end:
            self.at = min(end, self.at + timedelta(seconds=step))
            for sleeper in [one for one in self._sleepers if one[0] <= self.at]:
                self._sleepers.remove(sleeper)
                sleeper[1].set()
            for _ in range(10):
                await asyncio.sleep(0)


class Recorder:
    """Takes note of what is due; jobs last until told."""

    def __init__(self) -> None:
        self.due: list[tuple[str, float]] = []
        self.skipped: list[str] = []
        self.finish = asyncio.Event()
        self.finish.set()

    async def take(self, target: ScheduledTarget, late: float) -> None:
        self.due.append((target.name, late))
        await self.finish.wait()

    async def skip(self, target: ScheduledTarget) -> None:
        self.skipped.append(target.name)


def settings(**values: Any) -> TargetSettings:
    return TargetSettings(pid=1, **values)


def make() -> tuple[FakeClock, Recorder, Scheduler]:
    clock, recorder = FakeClock(), Recorder()
    return clock, recorder, Scheduler(clock, recorder.take, recorder.skip)


async def test_an_interval() -> None:
    clock, recorder, scheduler = make()
    scheduler.add("web", settings(every="10s"), source="settings", held=False)
    await clock.advance(35)
    assert [name for name, _ in recorder.due] == ["web"] * 3
    assert all(late <= 1 for _, late in recorder.due)
    await scheduler.close()


async def test_none_while_one_is_under_way() -> None:
    clock, recorder, scheduler = make()
    recorder.finish.clear()
    scheduler.add("web", settings(every="10s"), source="settings", held=False)
    await clock.advance(35)
    assert len(recorder.due) == 1
    assert recorder.skipped == ["web", "web"]
    recorder.finish.set()
    await clock.advance(10)
    assert len(recorder.due) == 2
    await scheduler.close()


async def test_what_was_missed_asleep_is_made_up_for_once() -> None:
    clock, recorder, scheduler = make()
    scheduler.add("web", settings(every="10s"), source="settings", held=False)
    await clock.advance(3600, step=3600)
    assert len(recorder.due) == 1
    await clock.advance(10)
    assert len(recorder.due) == 2
    await scheduler.close()


async def test_a_held_target_rests() -> None:
    clock, recorder, scheduler = make()
    target = scheduler.add("web", settings(every="10s"), source="settings", held=True)
    await clock.advance(25)
    assert recorder.due == []
    target.held = False
    await clock.advance(10)
    assert len(recorder.due) == 1
    await scheduler.close()


async def test_a_removed_target_is_due_no_more() -> None:
    clock, recorder, scheduler = make()
    scheduler.add("web", settings(every="10s"), source="settings", held=False)
    scheduler.remove("web")
    await clock.advance(60)
    assert recorder.due == []
    await scheduler.close()


async def test_jobs_that_are_late_are_cancelled() -> None:
    clock, recorder, scheduler = make()
    recorder.finish.clear()
    scheduler.add("web", settings(every="10s"), source="settings", held=False)
    await clock.advance(12)
    await scheduler.close()
    await scheduler.drain(0.01)
    assert not scheduler.targets["web"].running


@pytest.mark.parametrize(("values", "expected"), [
    ({"every": "90s"}, [START + timedelta(seconds=90), START + timedelta(seconds=180)]),
    ({"cron": "*/15 * * * *"}, [START + timedelta(minutes=15), START + timedelta(minutes=30)]),
    ({"on_calendar": "*:0/20"}, [START + timedelta(minutes=20), START + timedelta(minutes=40)]),
])
def test_the_kinds_of_schedule(values: dict[str, str], expected: list[datetime]) -> None:
    schedule = Schedule.of("web", settings(**values), START)
    first = schedule.after(START)
    assert first
    assert [first, schedule.after(first)] == expected


def test_a_calendar_expression_that_never_comes_again() -> None:
    assert Schedule.of("web", settings(on_calendar="2020-01-01"), START).after(START) is None


def test_jitter_is_bounded_and_stable() -> None:
    first = {name: Schedule.of(name, settings(every="60s", jitter="30s"), START).delay for name in "abcdefgh"}
    again = {name: Schedule.of(name, settings(every="60s", jitter="30s"), START).delay for name in "abcdefgh"}
    assert first == again
    assert len(set(first.values())) == len(first)
    assert all(timedelta() <= delay <= timedelta(seconds=30) for delay in first.values())


async def test_a_clock_that_is_set_back_holds_nothing_up() -> None:
    clock, recorder, scheduler = make()
    scheduler.add("web", settings(every="10s"), source="settings", held=False)
    scheduler.add("daily", settings(on_calendar="*-*-* 09:00:00 UTC"), source="settings", held=False)
    await clock.advance(15)
    assert [name for name, _ in recorder.due] == ["web"]
    clock.set_by -= timedelta(days=3, hours=3, minutes=1)  # it is 08:59 again, three days before
    await clock.advance(60)
    assert [name for name, _ in recorder.due[1:]].count("web") in {5, 6}
    await clock.advance(60)
    assert [name for name, _ in recorder.due].count("daily") == 1
    await scheduler.close()


async def test_a_clock_that_is_set_back_while_nobody_sleeps() -> None:
    clock, recorder, _ = make()

    async def skip(_target: ScheduledTarget) -> None:
        clock.set_by = timedelta(days=-3)

    scheduler = Scheduler(clock, recorder.take, skip)
    recorder.finish.clear()
    scheduler.add("web", settings(every="10s"), source="settings", held=False)
    await clock.advance(25)
    assert clock.set_by
    recorder.finish.set()
    await clock.advance(30)
    assert len(recorder.due) >= 3
    await scheduler.close()


async def test_a_clock_that_is_set_forward_makes_for_one_run_not_many() -> None:
    clock, recorder, scheduler = make()
    scheduler.add("web", settings(every="10s"), source="settings", held=False)
    await clock.advance(15)
    clock.set_by += timedelta(days=1)
    await clock.advance(10)
    assert 2 <= len(recorder.due) <= 3
    await scheduler.close()
