"""When a target is due: an interval, a cron expression or a systemd calendar expression, with jitter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING

from cronsim import CronSim
from oncalendar import OnCalendar

if TYPE_CHECKING:
    from crd.settings.models import TargetSettings


@dataclass(frozen=True, slots=True)
class Schedule:
    """The times of one target.

    Attributes:
        settings: of the target.
        since: the times of an interval count from here.
        delay: seconds of jitter, the same each time for a target of this name.
    """

    settings: TargetSettings
    since: datetime
    delay: timedelta

    @classmethod
    def of(cls, name: str, settings: TargetSettings, since: datetime) -> Schedule:
        """Make the schedule of a target; equal names are spread equally."""
        share = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") / 2**64
        return cls(settings, since, timedelta(seconds=settings.jitter * share))

    def after(self, when: datetime) -> datetime | None:
        """Return the first time after ``when``, or None if there is none any more.

        Calendar and cron expressions are read in local time.
        """
        before = when - self.delay
        found = self._plain_after(before)
        return found + self.delay if found else None

    def _plain_after(self, when: datetime) -> datetime | None:
        if self.settings.every is not None:
            steps = math.floor((when - self.since).total_seconds() / self.settings.every) + 1
            return self.since + timedelta(seconds=max(1, steps) * self.settings.every)
        local = when.astimezone()
        times = (CronSim(self.settings.cron, local) if self.settings.cron is not None
                 else OnCalendar(self.settings.on_calendar or "", local))
        found = next(iter(times), None)
        return found.astimezone(UTC) if found else None
