"""What is wrong, for the operator: what it is, since when, and what to do."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from crd.engine.api import USERSPACE
from crd.errors import CatalogError
from crd.reserve import RESERVE_BYTES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from crd.archive.stores.spooled import SpooledStore
    from crd.catalog.catalog import Catalog
    from crd.daemon.app import App
    from crd.daemon.scheduler import ScheduledTarget
    from crd.ids import Crid
    from crd.reserve import Reserve

ERROR, WARNING = "error", "warning"

_LATE = timedelta(minutes=5)
_STUCK = timedelta(minutes=5)
_UNHEARD = timedelta(minutes=1)
_REMEMBERED = timedelta(hours=1)
_FILLING = 0.8
_LEAST_FREE_SHARE = 0.05
_LEAST_FREE_BYTES = 10 << 30
CRIDS_TOLD = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that is wrong; field names are those of ``io.crd.varlink``.

    Attributes:
        level: ``error``: something that crd is there for is not done; ``warning``: it may soon not be.
        code: stable; that of the error, if there was one.
        object: what it is wrong with.
        since: None if nobody knows.
        target: only for the eyes of administrators if there is one.
    """

    level: str
    code: str
    object: str
    message: str
    hint: str
    since: datetime | None = None
    target: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the catalog says; ``error`` if it does not.

    Attributes:
        queue: as of ``Requests.queue``.
        hosts: as of ``Catalog.hosts``.
        damaged: some of the images that are.
        missing: some of the images whose objects are not there.
    """

    queue: tuple[int, int, datetime | None] | None = None
    hosts: dict[str, datetime] = field(default_factory=dict)
    damaged: Sequence[Crid] = ()
    missing: Sequence[Crid] = ()
    error: CatalogError | None = None


async def look(catalog: Catalog, without_object: Sequence[Crid] = ()) -> Seen:
    """Ask the catalog, also which of the images whose objects were missing at the start it still has."""
    try:
        return Seen(queue=await catalog.requests.queue(), hosts=await catalog.hosts(),
                    damaged=await catalog.images.damaged_ones(limit=CRIDS_TOLD + 1),
                    missing=await catalog.images.among(without_object[:CRIDS_TOLD + 1]) if without_object else ())
    except CatalogError as error:
        return Seen(error=error)


async def diagnose(app: App, seen: Seen) -> list[Problem]:
    """Return all that is wrong, errors first."""
    now = app.clock.now()
    found = [*_of_daemon(app), *_of_archive(app), *_of_clock(app, now), *_of_notes(app),
             *(_of_spool(app.spool, app.settings.s3.spool_size) if app.spool else ())]
    found += await asyncio.to_thread(lambda: [problem for path in _directories(app) for problem in _of_disk(path)]
                                     + [*_of_reserve(app.reserve)])
    found += _of_catalog(app, seen, now)
    for target in app.scheduler.targets.values():
        found += _of_target(app, target, now)
    return sorted(found, key=lambda problem: (problem.level, problem.object))


def _of_daemon(app: App) -> Iterator[Problem]:
    for fault in app.health.faults:
        yield Problem(level=ERROR, code="daemon.unwell", object="daemon", message=fault, since=app.health.faults_since,
                      hint="Its log says more: journalctl -u crd.")
    if app.guards.fault:
        yield Problem(level=WARNING, code="daemon.no-guard", object="daemon", message=app.guards.fault,
                      hint="Targets may not be saved when the host goes down: does systemd run, and dbus.service?")


def _of_archive(app: App) -> Iterator[Problem]:
    if app.without_row:
        yield Problem(level=WARNING, code="archive.without-row", object="images", since=app.started_at,
                      message=f"the catalog does not know: {_named(app.without_row)}",
                      hint="crctl adopt takes them in again.")


def _named(crids: Sequence[Crid]) -> str:
    return ", ".join(map(str, crids[:CRIDS_TOLD])) + (" ..." if len(crids) > CRIDS_TOLD else "")


def _of_clock(app: App, now: datetime) -> Iterator[Problem]:
    set_back_at = app.scheduler.clock_set_back_at
    if set_back_at and abs(now - set_back_at) < _REMEMBERED:
        yield Problem(level=WARNING, code="daemon.clock-set-back", object="clock", since=set_back_at,
                      message="the clock was set back, and schedules began anew",
                      hint="Images taken before may seem to come from the future: see timedatectl(1).")


def _of_notes(app: App) -> Iterator[Problem]:
    if app.settings.engine.note_writes and app.engine == USERSPACE and not app.features.get("note_writes", True):
        yield Problem(level=WARNING, code="engine.no-notes", object="engine",
                      message="writes are not noted, so that each image reads all of its target's memory",
                      hint="Run Linux 6.7 or newer, or set engine.note_writes = false; crd features says more.")


def _of_spool(spool: SpooledStore, spool_bytes: int) -> Iterator[Problem]:
    waiting = spool.waiting
    if waiting.error:
        yield Problem(level=ERROR, code="archive.away", object="archive", message=waiting.error,
                      since=waiting.away_since,
                      hint="Images wait in the spool, and are moved by themselves once the store answers.")
    if waiting.stored_bytes > _FILLING * spool_bytes:
        yield Problem(level=WARNING, code="archive.spool-filling", object="spool",
                      message=f"{waiting.stored_bytes} of {spool_bytes} bytes are in use",
                      hint="When it is full, checkpoints fail: bring the store back, or raise s3.spool_size.")


def _directories(app: App) -> Collection[Path]:
    """Return where crd writes, one directory for each file system, and those that cannot be looked at."""
    settings = app.settings
    found: dict[object, Path] = {}
    for path in (settings.daemon.state_dir,
                 settings.archive_path if settings.archive.store == "local" else settings.spool_path):
        try:
            found[path.stat().st_dev] = path
        except FileNotFoundError:
            continue  # nothing was written there yet
        except OSError:
            found[path] = path
    return found.values()


def _of_disk(path: Path) -> Iterator[Problem]:
    try:
        usage = shutil.disk_usage(path)
    except OSError as error:
        yield Problem(level=ERROR, code="disk.away", object=str(path),
                      message=f"it cannot be looked at: {error.strerror}",
                      hint="Is its file system mounted, and well? The kernel's log says more.")
        return
    if usage.free < min(_LEAST_FREE_SHARE * usage.total, _LEAST_FREE_BYTES):
        full = usage.free < _LEAST_FREE_SHARE * usage.total / 10
        yield Problem(level=ERROR if full else WARNING, code="disk.full" if full else "disk.nearly-full",
                      object=str(path), message=f"{usage.free >> 10} of {usage.total >> 10} KiB are free",
                      hint="Free some space, or have rules forget more (retention.keep, crctl forget).")


def _of_reserve(reserve: Reserve) -> Iterator[Problem]:
    if (held := reserve.held_bytes) < RESERVE_BYTES:
        yield Problem(level=WARNING if held else ERROR, code="disk.reserve-used", object="reserve",
                      message=f"of {RESERVE_BYTES >> 10} KiB that are kept back for a full disk, {held >> 10} are left",
                      hint="They let images be forgotten. Free some space: they are kept back again by themselves.")


def _of_catalog(app: App, seen: Seen, now: datetime) -> Iterator[Problem]:
    if error := seen.error:
        yield Problem(level=ERROR, code=error.code, object="catalog", message=error.message, hint=error.hint)
    if seen.queue and seen.queue[2] and now - seen.queue[2] > _STUCK:
        yield Problem(level=ERROR, code="restart.queue-stuck", object="queue", since=seen.queue[2],
                      message=f"{seen.queue[0]} restarts wait", hint="crctl requests says for what; journalctl -u crd.")
    if seen.damaged:
        yield Problem(level=ERROR, code="catalog.image-damaged", object="images",
                      message=f"damaged: {_named(seen.damaged)}",
                      hint="crctl show says how; repair the disk and run crctl verify, or run crctl forget.")
    if seen.missing:
        yield Problem(level=ERROR, code="archive.image-missing", object="images", since=app.started_at,
                      message=f"the archive does not have: {_named(seen.missing)}",
                      hint="Check archive.path; if they are gone for good: crctl forget.")
    for host, seen_at in seen.hosts.items():
        if host != app.host and now - seen_at > _UNHEARD:
            yield Problem(level=WARNING, code="catalog.host-unheard", object=f"host {host}", since=seen_at,
                          message="its daemon has not been heard of", hint=f"Look on {host}: systemctl status crd.")


def _of_target(app: App, target: ScheduledTarget, now: datetime) -> Iterator[Problem]:
    if target.held:
        return
    if failure := app.checkpoints.failing.get(target.name):
        yield Problem(level=ERROR, code=failure.error.code, object=f"target {target.name}", target=target.name,
                      message=failure.error.message, since=failure.since,
                      hint=failure.error.hint or f"crctl target hold {target.name} leaves it alone.")
        return
    with app.metrics.of(target.name) as metrics:
        due_since = metrics.due_since
    if due_since and now - (due := datetime.fromtimestamp(due_since, UTC)) > _LATE:
        yield Problem(level=ERROR, code="target.no-image", object=f"target {target.name}", target=target.name,
                      message="an image is due, and there is none yet", since=due,
                      hint="It takes long, or too many are due at once: engine.workers, crd_schedule_lag_seconds.")
    elif target.next_at is None:
        yield Problem(level=WARNING, code="target.never-due", object=f"target {target.name}", target=target.name,
                      message="its schedule has no time left", hint="Give it another schedule, or remove it.")
