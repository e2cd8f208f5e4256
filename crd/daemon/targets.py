"""Targets as the daemon keeps them: from the settings and from the catalog, resolved to a process when due."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crd.target import select

if TYPE_CHECKING:
    from crd.settings.models import TargetSettings
    from crd.target.model import Process

SELECTORS = ("pid", "pidfile", "comm")
TIMES = ("every", "on_calendar", "cron")


def resolve(settings: TargetSettings) -> Process:
    """Return the process that a target means now.

    Raises:
        TargetNotFound, TargetAmbiguous: none or several fit.
    """
    if settings.pid is not None:
        return select.by_pid(settings.pid)
    if settings.pidfile is not None:
        return select.by_pid_file(settings.pidfile)
    return select.by_comm(settings.comm or "")


def definition(settings: TargetSettings) -> dict[str, Any]:
    """Return a target as it was written: for the catalog and the interface."""
    written: dict[str, Any] = settings.model_dump(mode="json", exclude_none=True)
    if not written["jitter"] or written["jitter"] == "0s":
        del written["jitter"]
    return written
