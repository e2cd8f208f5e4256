"""What the daemon says, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crd.console import units
from crd.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

IMAGE_COLUMNS = ("crid", "target", "pid", "name", "taken", "size", "stored", "stopped", "state")
VERDICT_COLUMNS = ("crid", "target", "taken", "stored", "becomes", "because")
TARGET_COLUMNS = ("name", "what", "when", "next", "last")
REQUEST_COLUMNS = ("number", "crid", "state", "pids", "requested", "pid", "message")


def image_row(image: Mapping[str, Any]) -> tuple[object, ...]:
    """Return an image as a row of ``IMAGE_COLUMNS``."""
    return (image["crid"], image.get("target"), image["pid"], image["comm"], units.time(image["taken_at"]),
            units.size(image["image_bytes"]), units.size(image["stored_bytes"]), units.duration(image["stop_seconds"]),
            image["state"] + (", pinned" if image.get("pinned") else "")
            + "".join(f" [{tag}]" for tag in image.get("tags") or ()))


def image_fields(image: Mapping[str, Any]) -> dict[str, object]:
    """Return all that is known of an image."""
    header = image["header"]
    return {
        "crid": image["crid"],
        "host": image["host"],
        "target": image.get("target"),
        "process": f"{image['pid']} ({image['comm']}), uid {image['uid']}",
        "taken": f"{units.time(image['taken_at'])} ({units.age(image['taken_at'])})",
        "tags": ", ".join(image.get("tags") or ()),
        "note": image.get("note"),
        "state": image["state"] + (f": {image['damage']}" if image.get("damage") else ""),
        "pinned": "yes" if image.get("pinned") else "no",
        "verified": image.get("verified_at") and f"{units.time(image['verified_at'])} "
                                                 f"({units.age(image['verified_at'])})",
        "engine": f"{image['engine']}, {image['method']}",
        "because": image["method_reason"],
        "tasks": image["tasks"],
        "threads": image["threads"],
        "memory": units.size(image["memory_bytes"]),
        "size": f"{units.size(image['image_bytes'])}, {units.size(image['stored_bytes'])} stored",
        "stopped": units.duration(image["stop_seconds"]),
        "took": units.duration(image["duration_seconds"]),
        "digest": image["digest"],
        "kernel": f"{header['kernel']} ({header['release']} {header['machine']})",
    }


def image_summary(image: Mapping[str, Any]) -> str:
    """Return what matters of an image just taken, in one line."""
    return (f"crid {image['crid']}: pid {image['pid']} ({image['comm']}), {units.size(image['image_bytes'])}, "
            f"stopped for {units.duration(image['stop_seconds'])}, took {units.duration(image['duration_seconds'])}")


def verdict_row(verdict: Mapping[str, Any], *, dry_run: bool) -> tuple[object, ...]:
    """Return what becomes of an image as a row of ``VERDICT_COLUMNS``."""
    becomes = "kept" if verdict["keep"] else "to be forgotten" if dry_run or verdict.get("error") else "forgotten"
    return (verdict["crid"], verdict.get("target"), units.time(verdict["taken_at"]),
            units.size(verdict["stored_bytes"]), becomes, verdict.get("error") or "; ".join(verdict["reasons"]))


def verdict_text(verdict: Mapping[str, Any]) -> str:
    """Return what the rules make of an image."""
    return ("kept: " if verdict["keep"] else "to be forgotten: ") + "; ".join(verdict["reasons"])


def sharing_text(sharing: Mapping[str, Any]) -> str:
    """Return which pages of an image go with it, and which others need, too."""
    return (f"{sharing['own_pages']} in {sharing['own_packs']} packs of its own, {sharing['shared_pages']} in "
            f"{sharing['shared_packs']} packs that others need, too")


def target_row(target: Mapping[str, Any]) -> tuple[object, ...]:
    """Return a target as a row of ``TARGET_COLUMNS``."""
    what = next((f"{kind} {target[kind]}" for kind in ("pid", "pidfile", "comm", "unit", "cgroup")
                 if target.get(kind) is not None), None)
    schedule = next((f"{words} {target[kind]}" for kind, words in (("every", "every"), ("on_calendar", "on"),
                                                               ("cron", "cron")) if target.get(kind)), None)
    upcoming = "held" if target.get("held") else units.age(target.get("next_at"))
    return target["name"], what, schedule, upcoming, _attempt(target.get("last"))


def _attempt(attempt: Mapping[str, Any] | None) -> str | None:
    if attempt is None:
        return None
    when = units.age(attempt.get("ended_at") or attempt["started_at"])
    if attempt["state"] == "ok":
        return f"crid {attempt.get('crid')}, {when}"
    return f"{attempt['state']}, {when}" + (f": {attempt['message']}" if attempt.get("message") else "")


def request_row(request: Mapping[str, Any]) -> tuple[object, ...]:
    """Return a restart request as a row of ``REQUEST_COLUMNS``."""
    return (request["number"], request["crid"], request["state"], request["pids"], units.time(request["requested_at"]),
            request.get("root_pid"), request.get("message"))


def request_fields(request: Mapping[str, Any]) -> dict[str, object]:
    """Return all that is known of a restart request."""
    return {
        "number": request["number"],
        "crid": request["crid"],
        "host": request["host"],
        "state": request["state"],
        "pids": request["pids"],
        "files": request["files"],
        "uid": request["uid"],
        "requested": units.time(request["requested_at"]),
        "started": units.time(request.get("started_at")),
        "ended": units.time(request.get("ended_at")),
        "pid": request.get("root_pid"),
        "error": request.get("error"),
        "message": request.get("message"),
        "hint": request.get("hint"),
    }


def status_fields(status: Mapping[str, Any]) -> dict[str, object]:
    """Return how the daemon is."""
    archive, queue = status["archive"], status.get("queue")
    upcoming = (f"{status['next_target']}, {units.age(status['next_at'])}" if status.get("next_target") else "nothing")
    missing = sorted(name for name, there in status["features"].items() if not there)
    return {
        "daemon": f"{status['version']} on {status['host']}, pid {status['pid']}",
        "started": f"{units.time(status['started_at'])} ({units.age(status['started_at'])})",
        "engine": status["engine"] + (f", without {', '.join(missing)}" if missing else ""),
        "targets": f"{status['targets']}, {status['running']} being checkpointed",
        "next due": upcoming,
        "archive": f"{archive['images']} images, {units.size(archive['bytes'])} in {archive['path']}",
        **({"spool": _spool_text(archive["spool"])} if archive.get("spool") else {}),
        "queue": _queue_text(queue) if queue else "unknown",
        "metrics": status.get("metrics"),
        **({"hosts": ", ".join(f"{host['name']} ({units.age(host['seen_at'])})" for host in status["hosts"])}
           if status["hosts"] else {}),
    }


def problem_text(problem: Mapping[str, Any]) -> str:
    """Return what is wrong, since when, and what to do about it, on two lines."""
    since = f", since {units.time(problem['since'])} ({units.age(problem['since'])})" if problem.get("since") else ""
    first = f"{problem['level']}: {problem['object']}: {problem['message']} ({problem['code']}){since}"
    return f"{printable(first)}\n  -> {printable(problem['hint'])}"


def _queue_text(queue: Mapping[str, Any]) -> str:
    oldest = f", the oldest from {units.age(queue['oldest_at'])}" if queue.get("oldest_at") else ""
    return f"{queue['queued']} queued{oldest}, {queue['running']} running"


def _spool_text(spool: Mapping[str, Any]) -> str:
    waiting = (f"{units.size(spool['bytes'])} in {spool['objects']} objects wait" if spool["objects"]
               else "nothing waits")
    return waiting + (f": {spool['error']}" if spool.get("error") else "")

