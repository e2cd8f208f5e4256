"""Whether the daemon does what it is there for; systemd hears of it as long as it does, and else starts another."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from crd.daemon.notify import notify, watchdog_seconds
from crd.errors import CrdError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from datetime import datetime
    from typing import Any

    from crd.catalog.catalog import Catalog
    from crd.clock import Clock
    from crd.daemon.scheduler import Scheduler
    from crd.engine.pool import WorkerPool

logger = logging.getLogger(__name__)

_INTERVAL_SECONDS = 30.0
_AGAIN_SECONDS = 1.0


class Health:
    """Looks at scheduler, workers, catalog and what runs in the background, again and again."""

    def __init__(self, scheduler: Scheduler, workers: WorkerPool, catalog: Catalog, clock: Clock,
                 status: Callable[[], str]) -> None:
        """Look at these; ``status`` is what ``systemctl status`` says while all is well."""
        self._scheduler = scheduler
        self._workers = workers
        self._catalog = catalog
        self._clock = clock
        self._status = status
        self._interval = watchdog_seconds() or _INTERVAL_SECONDS
        self.faults: list[str] = []
        self.faults_since: datetime | None = None

    async def run(self, background: Sequence[asyncio.Task[None]]) -> None:
        """Look, and give signs of life while nothing is found, until cancelled."""
        while True:
            before, self.faults = self.faults, await self.look(background)
            if self.faults != before:
                self.faults_since = (self.faults_since or self._clock.now()) if self.faults else None
                self._tell()
            if not self.faults:
                notify("WATCHDOG=1", f"STATUS={self._status()}")
            await asyncio.sleep(_AGAIN_SECONDS if self.faults else self._interval)

    async def look(self, background: Sequence[asyncio.Task[None]]) -> list[str]:
        """Return what is wrong, a sentence each."""
        found = [f"{task.get_name()} has ended" for task in background if task.done()]
        found += [f"the schedule of {name} stands still" for name in self._scheduler.stuck()]
        answers = await asyncio.gather(self._in_time("the catalog", self._catalog.requests.queue()),
                                       self._in_time("the engine", self._borrow()))
        return found + [answer for answer in answers if answer]

    async def _borrow(self) -> None:
        async with self._workers.lease():
            pass

    async def _in_time(self, what: str, question: Coroutine[Any, Any, object]) -> str:
        try:
            async with asyncio.timeout(self._interval):
                await question
        except TimeoutError:
            return f"{what} does not answer"
        except CrdError as error:
            return f"{what}: {error.message}"
        return ""

    def _tell(self) -> None:
        if self.faults:
            notify(f"STATUS=Unwell: {'; '.join(self.faults)}")
            logger.error("unwell: %s", "; ".join(self.faults), extra={"event": "daemon.unwell"})
        else:
            logger.info("well again", extra={"event": "daemon.well"})
