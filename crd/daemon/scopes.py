"""Scopes: under systemd, restarted tasks live in a unit of their own, whatever becomes of the daemon's.

A worker is moved into the scope before it makes the first task, so that tasks and their sockets are born there.
``systemctl stop`` of the scope ends the tasks; it goes with the last of them.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from crd.daemon.notify import is_booted
from crd.errors import CrdError
from crd.target import procfs

logger = logging.getLogger(__name__)

_SYSTEMD = "org.freedesktop.systemd1"
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
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                fault = await self._start(pid) or await self._arrival(pid)
        except TimeoutError:
            fault = f"it took longer than {_PATIENCE_SECONDS:g} s"
        except OSError as error:
            fault = f"no bus: {error.strerror or error}"
        if fault:
            logger.warning("%s: %s; its tasks live in the engine's unit", self.name, fault,
                           extra={"event": "restart.no-scope"})

    async def _start(self, pid: int) -> str:
        """Ask for StartTransientUnit (org.freedesktop.systemd1(5)), and return why it is refused, if it is.

        Raises:
            OSError: there is no bus.
        """
        from dbus_fast import BusType, DBusFastError, Message, MessageType, Variant
        from dbus_fast.aio import MessageBus

        bus = MessageBus(bus_type=BusType.SYSTEM)
        properties = [["Description", Variant("s", self.description)], ["PIDs", Variant("au", [pid])],
                      ["CollectMode", Variant("s", "inactive-or-failed")]]
        try:
            await bus.connect()
            reply = await bus.call(Message(
                destination=_SYSTEMD, path="/org/freedesktop/systemd1", interface=f"{_SYSTEMD}.Manager",
                member="StartTransientUnit", signature="ssa(sv)a(sa(sv))", body=[self.name, "fail", properties, []]))
        except (DBusFastError, EOFError) as error:
            return str(error)
        finally:
            bus.disconnect()
        if reply is None or reply.message_type == MessageType.ERROR:
            return " ".join(map(str, reply.body)) if reply else "no answer"
        return ""

    async def _arrival(self, pid: int) -> str:
        """Wait until the process is in the scope, and return what becomes of it otherwise."""
        try:
            while not any(path.endswith(f"/{self.name}") for path in procfs.cgroups(pid).values()):  # noqa: ASYNC110
                await asyncio.sleep(_NAP_SECONDS)
        except CrdError as error:
            return error.message
        return ""
