"""Starts checkpoints when they are due; none of a target while one of it is under way."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from crd.daemon.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from crd.clock import Clock
    from crd.settings.models import TargetSettings

logger = logging.getLogger(__name__)

_NAP_SECONDS = 20.0
"""Longest sleep: the time of day may jump, and the machine may have been asleep."""
_STUCK = timedelta(seconds=5 * _NAP_SECONDS)
_JUMP_SECONDS = 2.0
"""Setting the clock back by less is made up for by waiting."""


@dataclass(slots=True)
class ScheduledTarget:
    """A target and where it stands."""

    name: str
    settings: TargetSettings
    schedule: Schedule
    source: str
    held: bool
    next_at: datetime | None = None
    running: bool = False
    loop: asyncio.Task[None] | None = field(default=None, repr=False)


class _Moment(NamedTuple):
    """A time of day, and the seconds that never run backwards."""

    time: datetime
    monotonic: float


class Scheduler:
    """One loop a target; a run that was missed, asleep or held, is made up for once, not many times.

    Attributes:
        changing: has whoever changes the targets, both here and in the catalog.
    """

    def __init__(self, clock: Clock, due: Callable[[ScheduledTarget, float], Awaitable[None]],
                 skipped: Callable[[ScheduledTarget], Awaitable[None]]) -> None:
        """Make a scheduler.

        Args:
            clock: to go by.
            due: takes a checkpoint of a target, told how many seconds late; never raises but when cancelled.
            skipped: told of a run that did not take place since the one before was still under way.
        """
        self._clock = clock
        self._due = due
        self._skipped = skipped
        self._jobs: set[asyncio.Task[None]] = set()
        self.targets: dict[str, ScheduledTarget] = {}
        self.changing = asyncio.Lock()
        self.clock_set_back_at: datetime | None = None

    def add(self, name: str, settings: TargetSettings, *, source: str, held: bool) -> ScheduledTarget:
        """Begin with a target."""
        moment = self._moment()
        target = ScheduledTarget(name, settings, Schedule.of(name, settings, moment.time), source, held)
        target.next_at = target.schedule.after(moment.time)
        target.loop = asyncio.create_task(self._run(target, moment), name=f"schedule {name}")
        self.targets[name] = target
        return target

    def remove(self, name: str) -> None:
        """Take no more checkpoints of a target; one under way goes on."""
        target = self.targets.pop(name)
        if target.loop:
            target.loop.cancel()

    def stuck(self) -> list[str]:
        """Return the names of targets whose time has long come while nothing happens."""
        long_ago = self._clock.now() - _STUCK
        return [name for name, target in self.targets.items()
                if target.next_at and (target.next_at < long_ago or not target.loop or target.loop.done())]

    async def close(self) -> None:
        """Stop all loops; jobs go on."""
        loops = [target.loop for target in self.targets.values() if target.loop]
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)

    async def drain(self, seconds: float) -> None:
        """Let jobs under way end within a time, and cancel the rest."""
        if self._jobs:
            _, late = await asyncio.wait(self._jobs, timeout=seconds)
            for job in late:
                job.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _run(self, target: ScheduledTarget, moment: _Moment) -> None:
        while woken := await self._sleep_until(target, moment):
            moment, late = woken
            target.next_at = target.schedule.after(moment.time)
            if target.held:
                continue
            if target.running:
                await self._skipped(target)
            else:
                target.running = True
                job = asyncio.create_task(self._job(target, late), name=f"checkpoint {target.name}")
                self._jobs.add(job)
                job.add_done_callback(self._jobs.discard)

    async def _job(self, target: ScheduledTarget, late: float) -> None:
        try:
            await self._due(target, late)
        finally:
            target.running = False

    async def _sleep_until(self, target: ScheduledTarget, before: _Moment) -> tuple[_Moment, float] | None:
        """Sleep until a target is due; after the clock was set back its schedule begins anew, else it would not be.

        Args:
            target: that waits.
            before: when its next time was found.

        Returns:
            when that has come, and how many seconds late it is; None if there is no next time.
        """
        while True:
            now = self._moment()
            if (now.time - before.time).total_seconds() < now.monotonic - before.monotonic - _JUMP_SECONDS:
                self._begin_anew(target, now.time)
            before = now
            if target.next_at is None:
                return None
            if (left := (target.next_at - now.time).total_seconds()) <= 0:
                return now, -left
            await self._clock.sleep(min(left, _NAP_SECONDS))

    def _begin_anew(self, target: ScheduledTarget, now: datetime) -> None:
        logger.warning("the clock was set back: %s begins its schedule anew", target.name,
                       extra={"event": "schedule.clock-set-back", "target": target.name})
        self.clock_set_back_at = now
        target.schedule = Schedule.of(target.name, target.settings, now)
        target.next_at = target.schedule.after(now)

    def _moment(self) -> _Moment:
        return _Moment(self._clock.now(), self._clock.monotonic())
