"""Rows as ``io.crd`` has them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from crd.daemon.targets import definition

if TYPE_CHECKING:
    from datetime import datetime

    from crd.catalog.rows import Checkpoint, Image, Request
    from crd.daemon.diagnosis import Problem
    from crd.daemon.retention import Verdict
    from crd.daemon.scheduler import ScheduledTarget
    from crd.engine.api import RestartPlan

_REQUEST_FIELDS = ("number", "host", "crid", "state", "pids", "files", "tcp", "stdio", "force_version", "uid",
                   "requested_at", "started_at", "ended_at", "root_pid", "error", "message", "hint")
TARGET_KEYS = ("pid", "pidfile", "comm", "unit", "cgroup", "every", "on_calendar", "cron", "jitter", "keep",
               "save_files", "files", "at_shutdown", "at_boot")


def time_json(when: datetime | None) -> str | None:
    """Return a time as text."""
    return when.isoformat() if when else None


def image_json(image: Image) -> dict[str, Any]:
    """Return a value of type Image."""
    return _with_times(_named(image))


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """Return a value of type Verdict."""
    return _with_times(_named(verdict)) | {"reasons": list(verdict.reasons)}


def request_json(request: Request) -> dict[str, Any]:
    """Return a value of type Request."""
    return _with_times({name: getattr(request, name) for name in _REQUEST_FIELDS})


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
            "source": target.source, "last": _with_times(_named(last)) if last else None,
            "next_at": time_json(target.next_at)}


def _named(value: Image | Verdict | Checkpoint) -> dict[str, Any]:
    """Return the fields by name; ``asdict`` would copy each, which takes longer than all the rest."""
    return {name: getattr(value, name) for name in value.__slots__}


def _with_times(values: dict[str, Any]) -> dict[str, Any]:
    return {name: time_json(value) if name.endswith("_at") else value for name, value in values.items()}
