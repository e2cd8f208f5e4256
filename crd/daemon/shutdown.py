"""Over a reboot: targets with ``at_shutdown`` are saved while the host goes down, and with ``at_boot`` restarted after.

A **guard** is ``crd-shutdown@UNIT.service``, which does nothing until it is stopped, and that is before its UNIT is,
and before the daemon: so systemd orders it.  Then it has the daemon save what lives in that unit, and waits.  The
request to restart an image is durable before its target ends, and is not carried out in the boot that it was made in.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from crd.daemon import systemd
from crd.daemon.checkpoints import Order
from crd.engine.api import After
from crd.errors import CrdError, SystemdUnavailable, TargetNotFound
from crd.target import select
from crd.target.tree import Family

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from crd.catalog.catalog import Catalog
    from crd.catalog.rows import Image
    from crd.clock import Clock
    from crd.daemon.checkpoints import Checkpoints
    from crd.daemon.scheduler import ScheduledTarget
    from crd.daemon.targets import Whereabouts
    from crd.engine.api import CheckpointOptions

logger = logging.getLogger(__name__)

TAG = "shutdown"
_GUARDS = "crd-shutdown@*.service"
_LOOK_SECONDS = 10.0
_NAP_SECONDS = 0.1
_TRIES = 3
_KINDS = (".service", ".scope")


class Saved(NamedTuple):
    """What became of a target: its image, or why there is none."""

    target: str
    image: Image | None
    error: CrdError | None


class Guards:
    """Keeps a guard before each unit in which a target lives that is to be saved."""

    def __init__(self, targets: Mapping[str, ScheduledTarget], whereabouts: Whereabouts) -> None:
        """Look at these targets; ``changed`` is to be set when they are others, or elsewhere."""
        self._targets = targets
        self._whereabouts = whereabouts
        self.changed = asyncio.Event()
        self.fault = ""
        self._may_stand = True  # those of a daemon before us

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            self.changed.clear()
            wanted = {f"crd-shutdown@{unit}.service" for unit in await asyncio.to_thread(self._units)}
            if wanted or self._may_stand:
                await self._place(wanted)
                self._may_stand = bool(wanted)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self.changed.wait()

    def _units(self) -> set[str]:
        units = set()
        for target in list(self._targets.values()):
            if target.settings.at_shutdown and not target.held:
                units |= _units_of(target, self._whereabouts)
                if (target.settings.unit or "").endswith(_KINDS):
                    units.add(str(target.settings.unit))  # it may be started at any time
        return units

    async def _place(self, wanted: set[str]) -> None:
        before, self.fault = self.fault, ""
        try:
            standing = await systemd.active_units(_GUARDS)
            for unit in wanted - standing:
                await systemd.start(unit)
            for unit in standing - wanted:
                await systemd.stop(unit)
        except SystemdUnavailable as error:
            self.fault = error.message
        if self.fault and self.fault != before:
            logger.warning("targets may not be saved when the host goes down: %s", self.fault,
                           extra={"event": "shutdown.no-guard"})


def _units_of(target: ScheduledTarget, whereabouts: Whereabouts) -> set[str]:
    """Return the units in which the processes of a target live now."""
    with suppress(CrdError):
        family = Family(whereabouts.find(target).pid)
        return {unit for pid in family if (unit := select.unit_of(pid))}
    return set()


@dataclass(slots=True)
class Shutdown:
    """Saves targets while the host goes down."""

    targets: Mapping[str, ScheduledTarget]
    whereabouts: Whereabouts
    checkpoints: Checkpoints
    catalog: Catalog
    clock: Clock
    options: Callable[[ScheduledTarget, After], CheckpointOptions]
    boot_id: str

    async def save(self, unit: str) -> Sequence[Saved]:
        """Save and end the targets that live in a unit; none if the host is not going down.

        Raises:
            SystemdUnavailable: nobody says whether it is.
        """
        if not await systemd.is_stopping():
            return []
        found = [target for target in list(self.targets.values()) if target.settings.at_shutdown and not target.held
                 and unit in await asyncio.to_thread(_units_of, target, self.whereabouts)]
        return [saved for saved in await asyncio.gather(*map(self._save, found)) if saved.image or saved.error]

    async def _save(self, target: ScheduledTarget) -> Saved:
        """Save a target that may be under a checkpoint, or in several units, of which another is the first."""
        while target.running:  # noqa: ASYNC110
            await asyncio.sleep(_NAP_SECONDS)
        target.running = True
        try:
            return Saved(target.name, await self._take(target), None)
        except TargetNotFound:
            return Saved(target.name, None, None)
        except CrdError as error:
            return Saved(target.name, None, error)
        finally:
            target.running = False

    async def _take(self, target: ScheduledTarget) -> Image:
        await asyncio.to_thread(self.whereabouts.find, target)
        for _ in range(_TRIES - 1):
            try:
                return await self._take_once(target)
            except CrdError as error:
                if not error.retryable:
                    raise
        return await self._take_once(target)

    async def _take_once(self, target: ScheduledTarget) -> Image:
        return await self.checkpoints.take(self.options(target, After.KILL), Order(
            target=target, tags=(TAG,), kept=lambda image: self._ask_for(target, image)))

    async def _ask_for(self, target: ScheduledTarget, image: Image) -> None:
        """Queue the restart for the next boot, while the target still runs."""
        if target.settings.at_boot:
            await self.catalog.requests.add(image.crid, pids=target.settings.at_boot,
                                            files=target.settings.files or "keep", uid=0, now=self.clock.now(),
                                            boot_id=self.boot_id)
