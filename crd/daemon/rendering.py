"""Rows as ``io.crd`` has them."""

from __future__ import annotations

from dataclasses import asdict, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from crd.catalog.rows import Checkpoint, Image
from crd.daemon.retention import Verdict
from crd.daemon.targets import definition

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from crd.catalog.rows import Request
    from crd.daemon.diagnosis import Problem
    from crd.daemon.scheduler import ScheduledTarget
    from crd.engine.api import RestartPlan

_REQUEST_FIELDS = ("number", "host", "crid", "state", "pids", "files", "tcp", "stdio", "force_version", "uid",
                   "requested_at", "started_at", "ended_at", "root_pid", "error", "message", "hint")
TARGET_KEYS = ("pid", "pidfile", "comm", "unit", "cgroup", "every", "on_calendar", "cron", "jitter", "keep",
               "save_files", "files", "at_shutdown", "at_boot")


def time_json(when: datetime | None) -> str | None:
    """Return a time as text."""
    return when.isoformat() if when else None


def _rendering(names: Sequence[str]) -> Callable[[Any], dict[str, Any]]:
    """Return what makes an object of these attributes of a row: there may be very many rows."""
    values, times = attrgetter(*names), [name for name in names if name.endswith("_at")]

    def rendered(row: object) -> dict[str, Any]:
        found = dict(zip(names, values(row), strict=True))
        for name in times:
            found[name] = time_json(found[name])
        return found

    return rendered


_image, _verdict, _checkpoint, _request = map(_rendering, (
    [field.name for field in fields(Image)], Verdict._fields, [field.name for field in fields(Checkpoint)],
    _REQUEST_FIELDS))


def image_json(image: Image) -> dict[str, Any]:
    """Return a value of type Image."""
    return _image(image)


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """Return a value of type Verdict."""
    return _verdict(verdict)


def request_json(request: Request) -> dict[str, Any]:
    """Return a value of type Request."""
    return _request(request)


def problem_json(problem: Problem) -> dict[str, Any]:
    """Return a value of type Problem."""
    values = asdict(problem)
    del values["target"]
    return values | {"since": time_json(problem.since)}


def plan_json(image: Image, plan: RestartPlan) -> dict[str, Any]:
    """Return the reply of PlanRestart."""
    return {"crid": image.crid, "makes": [asdict(made) for made in plan.makes], "notes": list(plan.notes),
            "clashes": [{name: clash[name] for name in ("error", "message", "hint")} for clash in plan.clashes]}


def target_json(target: ScheduledTarget, last: Checkpoint | None) -> dict[str, Any]:
    """Return a value of type Target."""
    written = definition(target.settings)
    return {**{key: written.get(key) for key in TARGET_KEYS}, "name": target.name, "held": target.held,
            "source": target.source, "last": _checkpoint(last) if last else None,
            "next_at": time_json(target.next_at)}
