"""Scopes: under systemd, restarted tasks live in a unit of their own, whatever becomes of the daemon's.

A worker is moved into the scope before it makes the first task, so that tasks and their sockets are born there.
``systemctl stop`` of the scope ends the tasks; it goes with the last of them.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from crd.daemon import systemd
from crd.daemon.notify import is_booted
from crd.errors import CrdError
from crd.target import procfs

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 10.0
_NAP_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Scope:
    """A unit for the tasks of one restart."""

    name: str
    description: str

    async def take_in(self, pid: int) -> None:
        """Make the scope, and move a process into it; where that fails it stays where it is, which is logged."""
        if not is_booted():
            return
        fault = ""
        try:
            await self._start(pid)
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._arrival(pid)
        except TimeoutError:
            fault = f"it took longer than {_PATIENCE_SECONDS:g} s"
        except CrdError as error:
            fault = error.message
        if fault:
            logger.warning("%s: %s; its tasks live in the engine's unit", self.name, fault,
                           extra={"event": "restart.no-scope"})

    async def _start(self, pid: int) -> None:
        """Ask for it; raises SystemdUnavailable."""
        from dbus_fast import Variant

        await systemd.start_transient(self.name, [
            ["Description", Variant("s", self.description)], ["PIDs", Variant("au", [pid])],
            ["CollectMode", Variant("s", "inactive-or-failed")]])

    async def _arrival(self, pid: int) -> None:
        """Wait until the process is in the scope; raises TargetGone."""
        while not any(path.endswith(f"/{self.name}") for path in procfs.cgroups(pid).values()):  # noqa: ASYNC110
            await asyncio.sleep(_NAP_SECONDS)
