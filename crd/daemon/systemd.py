"""What is asked of systemd's manager, over D-Bus (org.freedesktop.systemd1(5))."""

from __future__ import annotations

import asyncio
from typing import Any

from crd.errors import SystemdUnavailable

_SYSTEMD = "org.freedesktop.systemd1"
_MANAGER = f"{_SYSTEMD}.Manager"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_PATIENCE_SECONDS = 10.0
_IS, _STATE = 0, 3
"""Of a row of ListUnitsByPatterns: name of the unit, active state."""


async def start_transient(unit: str, properties: list[list[Any]]) -> None:
    """Make a unit of these properties; raises SystemdUnavailable."""
    await _ask(_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", properties, [])


async def start(unit: str) -> None:
    """Have a unit started; raises SystemdUnavailable."""
    await _ask(_MANAGER, "StartUnit", "ss", unit, "fail")


async def stop(unit: str) -> None:
    """Have a unit stopped; raises SystemdUnavailable."""
    await _ask(_MANAGER, "StopUnit", "ss", unit, "fail")


async def active_units(pattern: str) -> set[str]:
    """Return the names of active units that a pattern fits; raises SystemdUnavailable."""
    [rows] = await _ask(_MANAGER, "ListUnitsByPatterns", "asas", ["active", "activating"], [pattern])
    return {row[_IS] for row in rows if row[_STATE] in {"active", "activating"}}


async def is_stopping() -> bool:
    """Return whether the host is going down, or about to boot anew; raises SystemdUnavailable."""
    [state] = await _ask(_PROPERTIES, "Get", "ss", _MANAGER, "SystemState")
    return bool(state.value == "stopping")


async def _ask(interface: str, member: str, signature: str, *body: Any) -> list[Any]:
    """Call a method of the manager and return what it replies.

    Raises:
        SystemdUnavailable: there is no bus, or it is refused.
    """
    from dbus_fast import BusType, DBusFastError, Message, MessageType
    from dbus_fast.aio import MessageBus

    message = Message(destination=_SYSTEMD, path="/org/freedesktop/systemd1", interface=interface, member=member,
                      signature=signature, body=list(body))
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            bus = MessageBus(bus_type=BusType.SYSTEM)
            try:
                await bus.connect()
                reply = await bus.call(message)
            finally:
                bus.disconnect()
    except TimeoutError as error:
        raise SystemdUnavailable(f"{member} took longer than {_PATIENCE_SECONDS:g} s") from error
    except OSError as error:
        raise SystemdUnavailable(f"there is no bus to ask systemd by: {error.strerror or error}",
                                 hint="Does systemd run this host, and dbus.service?") from error
    except (DBusFastError, EOFError) as error:
        raise SystemdUnavailable(f"{member}: {error}") from error
    if reply is None or reply.message_type == MessageType.ERROR:
        raise SystemdUnavailable(f"{member}: {' '.join(map(str, reply.body)) if reply else 'no answer'}")
    return list(reply.body)
