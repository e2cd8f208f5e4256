"""Answers the methods of ``io.crd``; who may do what is decided here.

Root and members of the group ``crd`` may do everything.  Others see and restart images of tasks that ran as their own
user, checkpoint their own processes, and see their own requests.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from crd.daemon import pages
from crd.daemon.checkpoints import Order
from crd.daemon.diagnosis import diagnose, look
from crd.daemon.pipeline import usable
from crd.daemon.rendering import TARGET_KEYS, image_json, plan_json, problem_json, request_json, target_json, time_json
from crd.daemon.restarts import pids_tried
from crd.daemon.targets import definition
from crd.daemon.upkeep import UpkeepHandlers, need_admin
from crd.engine.api import After, CheckpointOptions, Files, RestartOptions, Stdio, Tcp
from crd.errors import (
    AccessDenied,
    BadRequest,
    Busy,
    PidInUse,
    RequestNotFound,
    TargetError,
    TargetExists,
    TargetGone,
)
from crd.ids import parse_tag, parse_target_name
from crd.settings.load import check_target
from crd.target import procfs, select
from crd.target.owner import credentials, owner
from crd.target.tree import Family

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from crd.api.access import Peer
    from crd.api.channel import Channel
    from crd.catalog.rows import Image, Request
    from crd.daemon.scheduler import ScheduledTarget

    More = Callable[[dict[str, Any]], Awaitable[None]]

_PROGRESS_SECONDS = 0.1


class Handlers(UpkeepHandlers):
    """One method for each of the interface, named as there."""

    async def handle(self, method: str, parameters: dict[str, Any], peer: Peer,
                     more: More | Channel | None) -> dict[str, Any]:
        """Answer a call; see ``crd.api.dispatch.Handler``."""
        answer = getattr(self, f"_on_{method}")
        result: dict[str, Any] = await answer(peer=peer, more=more, **parameters)
        return result

    async def _on_GetStatus(self, *, peer: Peer, more: More | None) -> dict[str, Any]:  # noqa: ARG002, N802
        seen = await look(self._app.catalog, self._app.without_object)
        problems = [problem for problem in await diagnose(self._app, seen) if peer.is_admin or problem.target is None]
        app = self._app
        size = await app.meter.current()
        waiting = app.spool and app.spool.waiting
        due = [target for target in app.scheduler.targets.values() if target.next_at and not target.held]
        following = min(due, key=lambda target: target.next_at or app.started_at, default=None)
        return {
            "version": app.version, "host": app.host, "pid": app.pid, "started_at": app.started_at.isoformat(),
            "engine": app.engine, "features": app.features, "targets": len(app.scheduler.targets),
            "running": app.checkpoints.running,
            "archive": {"path": app.archive.describe(), "bytes": size.stored_bytes, "images": size.images,
                        "spool": waiting and {"objects": waiting.objects, "bytes": waiting.stored_bytes,
                                              "error": waiting.error or None}},
            "queue": seen.queue and dict(zip(("queued", "running", "oldest_at"), (*seen.queue[:2], time_json(
                seen.queue[2])), strict=True)),
            "next_target": following.name if following else None,
            "next_at": time_json(following.next_at) if following else None, "metrics": app.metrics_url or None,
            "hosts": [{"name": name, "seen_at": time_json(seen_at)}
                      for name, seen_at in seen.hosts.items()],
            "problems": [problem_json(problem) for problem in problems]}

    async def _on_Reload(self, *, peer: Peer, more: More | None) -> dict[str, Any]:  # noqa: ARG002, N802
        need_admin(peer)
        return {"waiting": await self._app.reload(), "targets": len(self._app.scheduler.targets)}

    async def _on_ListTargets(self, *, peer: Peer, more: More | None) -> dict[str, Any]:  # noqa: ARG002, N802
        last = await self._app.catalog.checkpoints.last()
        return {"targets": [target_json(target, last.get(name))
                            for name, target in sorted(self._app.scheduler.targets.items())] if peer.is_admin else []}

    async def _on_AddTarget(self, *, peer: Peer, more: More | None,  # noqa: ARG002, N802
                            target: dict[str, Any]) -> dict[str, Any]:
        need_admin(peer)
        name = parse_target_name(target["name"])
        written = {key: target[key] for key in TARGET_KEYS if target.get(key) is not None}
        settings = check_target(name, written | {"held": target["held"]})
        async with self._app.scheduler.changing:
            if name in self._app.scheduler.targets:
                raise TargetExists(f"there is a target {name} already", hint="Remove it first, or use another name.")
            last_taken = await self._app.catalog.images.last_taken()
            await self._app.catalog.targets.add(name, definition(settings))
            added = self._app.add_target(name, settings, last_taken.get(name), source="catalog", held=settings.held)
        return {"target": target_json(added, None)}

    async def _on_RemoveTarget(self, *, peer: Peer, more: More | None, name: str) -> dict[str, Any]:  # noqa: ARG002, N802
        need_admin(peer)
        async with self._app.scheduler.changing:
            self._known(name)
            await self._app.catalog.targets.remove(name)
            self._app.remove_target(name)
        return {}

    async def _on_HoldTarget(self, *, peer: Peer, more: More | None, name: str) -> dict[str, Any]:  # noqa: ARG002, N802
        return await self._hold(peer, name, held=True)

    async def _on_ResumeTarget(self, *, peer: Peer, more: More | None, name: str) -> dict[str, Any]:  # noqa: ARG002, N802
        return await self._hold(peer, name, held=False)

    async def _hold(self, peer: Peer, name: str, *, held: bool) -> dict[str, Any]:
        need_admin(peer)
        async with self._app.scheduler.changing:
            target = self._known(name)
            await self._app.catalog.targets.hold(name, held=held)
            target.held = held
        self._app.guards.changed.set()
        with self._app.metrics.of(name) as metrics:
            metrics.due_since = 0.0
        return {}

    async def _on_Checkpoint(self, *, peer: Peer, more: More | None, target: str | None, pid: int | None,  # noqa: N802
                             after: str | None, tag: str | None, wait: bool | None,
                             connection: int | None) -> dict[str, Any]:
        if (target is None) == (pid is None):
            raise BadRequest("name either a target or a pid")
        known = self._known(target) if target is not None else None
        options = await self._options(peer, known, pid or 0, After(after or "run"), connection)
        tags = (parse_tag(tag),) if tag else ()
        reached = 0

        def progress(n_bytes: int) -> None:
            nonlocal reached
            reached = n_bytes

        job = self._app.start(self._take(known, pid, options, tags, progress))
        if wait is False:
            await asyncio.sleep(0)  # until it has begun, or was refused
            if job.done():
                await job
            return {"stage": "begun", "bytes": None, "image": None}
        while more and not job.done():
            await asyncio.wait({job}, timeout=_PROGRESS_SECONDS)
            if not job.done():
                await more({"stage": "storing" if reached else "stopping", "bytes": reached, "image": None})
        return {"stage": "done", "bytes": None, "image": image_json(await asyncio.shield(job))}

    async def _options(self, peer: Peer, target: ScheduledTarget | None, pid: int, after: After,
                       connection: int | None) -> CheckpointOptions:
        """Return how an image of a target or a process is taken for a peer, who may have it."""
        options = self._app.checkpoint_options(target, after)
        if connection is not None:
            if pid != peer.pid:
                raise BadRequest("only who names its own pid has a connection to leave out")
            options = replace(options, left_out=(peer.pid, connection))
        if target:
            need_admin(peer)
            return options
        await self._need_owner(peer, pid)
        return replace(options, only_uid=None if peer.is_admin else peer.uid)

    async def _take(self, target: ScheduledTarget | None, pid: int | None, options: CheckpointOptions,
                    tags: tuple[str, ...], progress: Callable[[int], None]) -> Image:
        if target is None:
            return await self._app.checkpoints.take(options, Order(pid=pid, tags=tags, progress=progress))
        if target.running:
            raise Busy(f"a checkpoint of {target.name} is under way", hint="Wait for it, then try again.")
        target.running = True
        try:
            return await self._app.checkpoints.take(options, Order(target=target, tags=tags, progress=progress))
        finally:
            target.running = False

    async def _on_ListImages(self, *, peer: Peer, more: More | None, target: str | None, tag: str | None,  # noqa: ARG002, N802
                             since: str | None, limit: int | None, cursor: str | None) -> dict[str, Any]:
        rows = pages.page_rows(limit)
        found = await self._app.catalog.images.list(
            target=target, tag=tag, since=_parse_time(since) if since else None, limit=rows + 1,
            uid=None if peer.is_admin else peer.uid, after=None if cursor is None else pages.image_place(cursor))
        images, following = pages.page(found, rows, pages.image_cursor)
        return {"images": [image_json(image) for image in images], "cursor": following}

    async def _on_Restart(self, *, peer: Peer, more: More | None, reference: str,  # noqa: ARG002, N802
                          pids: str | None, files: str | None, tcp: str | None, stdio: str | None,
                          force_version: bool | None) -> dict[str, Any]:
        image = usable(await self._find(peer, reference))
        if image.host != self._app.host:
            need_admin(peer)  # a uid need not be the same person's there
        request = await self._app.catalog.requests.add(
            image.crid, pids=pids or "original", files=files or self._files(image), tcp=tcp or Tcp.AUTO,
            stdio=stdio or Stdio.PTY, force_version=bool(force_version), uid=peer.uid, now=self._app.clock.now(),
            gids=None if peer.is_admin else peer.groups, host=image.host)
        self._app.restarts.wake()
        return {"request": request_json(request)}

    async def _on_PlanRestart(self, *, peer: Peer, more: More | None, reference: str,  # noqa: ARG002, N802
                              pids: str | None, files: str | None, tcp: str | None, stdio: str | None,
                              force_version: bool | None) -> dict[str, Any]:
        image = await self._here(peer, reference)
        options = RestartOptions(files=Files(files or self._files(image)), tcp=Tcp(tcp or Tcp.AUTO),
                                 stdio=Stdio(stdio or Stdio.PTY), force_version=bool(force_version),
                                 only_uid=None if peer.is_admin else peer.uid, only_gids=tuple(peer.groups))
        with self._app.readers.reading(image.crid):
            for tried in pids_tried(pids or "original"):
                plan = await self._app.pipeline.plan(image.crid, replace(options, pids=tried))
                if all(clash["error"] != PidInUse.code for clash in plan.clashes):
                    break
        return plan_json(image, plan)

    def _files(self, image: Image) -> str:
        """Return what is done about files of an image if nobody says: the targets of other hosts are not known here."""
        here = image.host == self._app.host
        target = self._app.scheduler.targets.get(image.target or "") if here else None
        return (target and target.settings.files) or Files.KEEP

    async def _on_ListRequests(self, *, peer: Peer, more: More | None, limit: int | None,  # noqa: ARG002, N802
                               cursor: str | None) -> dict[str, Any]:
        rows = pages.page_rows(limit)
        found = await self._app.catalog.requests.list(
            limit=rows + 1, uid=None if peer.is_admin else peer.uid,
            below=None if cursor is None else pages.request_number(cursor))
        requests, following = pages.page(found, rows, pages.request_cursor)
        return {"requests": [request_json(request) for request in requests], "cursor": following}

    async def _on_GetRequest(self, *, peer: Peer, more: More | None, number: int,  # noqa: N802
                             wait: bool | None) -> dict[str, Any]:
        shown = None
        while True:
            changed = self._app.restarts.changed
            request = await self._own_request(peer, number)
            if request.ended or not wait:
                return {"request": request_json(request)}
            if more and request.state != shown:
                await more({"request": request_json(request)})
                shown = request.state
            await changed.wait()

    async def _on_CancelRequest(self, *, peer: Peer, more: More | None, number: int) -> dict[str, Any]:  # noqa: ARG002, N802
        await self._own_request(peer, number)
        request = await self._app.catalog.requests.cancel(number, self._app.clock.now())
        await self._app.restarts.cancelled()
        return {"request": request_json(request)}

    async def _on_SaveForShutdown(self, *, peer: Peer, more: More | None, unit: str) -> dict[str, Any]:  # noqa: ARG002, N802
        need_admin(peer)
        return {"targets": [{"target": target, "crid": image and image.crid, "message": error and error.message}
                            for target, image, error in await self._app.shutdown.save(unit)]}

    async def _on_Check(self, *, peer: Peer, more: More | None, pid: int) -> dict[str, Any]:  # noqa: ARG002, N802
        await self._need_owner(peer, pid)
        async with self._checking:
            report = await self._app.pipeline.check(pid)
        return {"pid": pid, "comm": report.comm, "obstacles": [asdict(obstacle) for obstacle in report.obstacles],
                "notes": list(report.notes)}

    async def _on_Serve(self, *, peer: Peer, more: More | None, listener: int) -> dict[str, Any]:  # noqa: ARG002, N802
        await self._app.served.take(peer.pid, listener)
        return {}

    async def _on_Attach(self, *, peer: Peer, more: More | None, pid: int | None, request: int | None,  # noqa: ARG002, N802
                         connection: int) -> dict[str, Any]:
        if (pid is None) == (request is None):
            raise BadRequest("name either a pid or a request")
        if pid is None:
            pid = self._root_of(await self._own_request(peer, request or 0))
        await self._need_owner(peer, pid)
        async with self._checking, self._app.pipeline.workers.lease() as worker:
            terminal, root_pid = await worker.find_terminal(pid, peer.pid, connection)
            await self._need_owner(peer, root_pid)  # the terminal is theirs that it is held for: the pid's may be su
            await self._need_owner(peer, peer.pid)  # and still the caller
            await worker.commit()
        return {"pid": pid, "terminal": terminal}

    def _root_of(self, request: Request) -> int:
        """Return the first task of a request, which still runs here."""
        with suppress(TargetError):
            if ((request.host, request.boot_id) == (self._app.host, self._app.restarts.boot_id) and request.root_pid
                    and procfs.stat(request.root_pid).start_time == request.root_start_time):
                return request.root_pid
        raise TargetGone(f"the first task of request {request.number} does not run here")

    async def _need_owner(self, peer: Peer, pid: int) -> None:
        if not peer.is_admin:
            await asyncio.to_thread(_need_family_of, peer.uid, pid)

    async def _own_request(self, peer: Peer, number: int) -> Request:
        request = await self._app.catalog.requests.get(number)
        if not peer.is_admin and request.uid != peer.uid:
            raise RequestNotFound(f"there is no request {number} of yours")
        return request


def _need_family_of(uid: int, pid: int) -> None:
    """Refuse a process that is another user's, or has a descendant that is."""
    for member in Family(select.by_pid(pid).pid):
        with suppress(TargetGone):
            if owner([credentials(procfs.status(member))]) != uid:
                raise AccessDenied(f"process {member} is not yours, or has rights that you do not have")


def _parse_time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"{text!r} is not a time", hint="Write it as 2026-11-23T10:00:00+00:00.") from error

