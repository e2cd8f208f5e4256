"""Targets as the daemon keeps them: from the settings and from the catalog, resolved to a process when due."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from crd.errors import SettingsError, TargetNotFound
from crd.settings.load import check_target
from crd.target import select

if TYPE_CHECKING:
    from crd.daemon.scheduler import ScheduledTarget
    from crd.settings.models import Settings, TargetSettings
    from crd.target.model import Process

logger = logging.getLogger(__name__)


def resolve(settings: TargetSettings) -> Process:
    """Return the process that a target means now.

    Raises:
        TargetNotFound, TargetAmbiguous: none or several fit.
    """
    if settings.pid is not None:
        return select.by_pid(settings.pid)
    if settings.pidfile is not None:
        return select.by_pid_file(settings.pidfile)
    if settings.unit is not None:
        return select.by_unit(settings.unit)
    if settings.cgroup is not None:
        return select.by_cgroup(settings.cgroup)
    return select.by_comm(settings.comm or "")


class Whereabouts:
    """Which process a target means now: that of its settings, or else what it was restarted as.

    A restarted program is in neither the unit nor the control group in which it was started, and may have another pid.
    """

    def __init__(self) -> None:
        """Know of no restart."""
        self._restarted: dict[str, tuple[int, int]] = {}

    def restarted(self, target: str, pid: int, start_time: int) -> None:
        """Note that a target was restarted as this process."""
        self._restarted[target] = pid, start_time

    def find(self, target: ScheduledTarget) -> Process:
        """Return the process that a target means now.

        Raises:
            TargetNotFound, TargetAmbiguous: none or several fit.
        """
        try:
            return resolve(target.settings)
        except TargetNotFound:
            if key := self._restarted.get(target.name):
                with suppress(TargetNotFound):
                    return select.by_key(*key)
            raise


def definition(settings: TargetSettings) -> dict[str, Any]:
    """Return a target as it was written: for the catalog and the interface."""
    written: dict[str, Any] = settings.model_dump(mode="json", exclude_none=True)
    if not written["jitter"] or written["jitter"] == "0s":
        del written["jitter"]
    return written


class Wanted(NamedTuple):
    """A target that there is to be; ``source`` is "settings" or "catalog"."""

    settings: TargetSettings
    source: str
    held: bool


def wanted_targets(settings: Settings, stored: dict[str, dict[str, Any]], held: dict[str, bool]) -> dict[str, Wanted]:
    """Return the targets of the settings, and those of the catalog that are not there, too."""
    wanted = {name: Wanted(target, "settings", held.get(name, target.held))
              for name, target in settings.targets.items()}
    for name, definition in stored.items():
        if name in wanted:
            logger.warning("target %s is in the settings too: that one counts", name)
            continue
        try:
            target = check_target(name, definition)
        except SettingsError as error:
            logger.warning("target %s of the catalog: %s", name, error.message)
        else:
            wanted[name] = Wanted(target, "catalog", held.get(name, target.held))
    return wanted
