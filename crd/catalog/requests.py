"""Restart requests: a queue that survives the daemon.

``queued`` -> ``running`` (claimed) -> ``releasing`` (all is made, nothing runs yet; the root's pid and start time are
known) -> ``done``; or ``failed``, or ``cancelled`` while queued.  A daemon that dies while a request is ``running``
takes the half-made tasks with it, so the request has failed; one that dies in ``releasing`` leaves either nothing or
the root task with that start time.  So no request is carried out twice, and none is lost.  Those that ended long ago
are dropped (``prune``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, insert, select, update

from crd.catalog.rows import Request
from crd.catalog.schema import images, requests
from crd.catalog.verbs import Verbs, freeing, reads, writes
from crd.errors import ImageNotFound, QueueFull, RequestMoved, RequestNotCancellable, RequestNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from crd.errors import CrdError
    from crd.ids import Crid

QUEUED_MAX = 20_000
QUEUED_MAX_OF_USER = 100
_ROOTS_MAX = 10_000
_UNENDED = ("queued", "running", "releasing")
_ENDED = ("done", "failed", "cancelled")
_PRUNED_AT_ONCE = 1000
_INTERRUPTED = "restart.interrupted"
_MESSAGES = {"running": "the daemon ended before a task of it ran",
             "releasing": "the daemon ended while the tasks were let go; none of them runs now"}
_HINTS = {"running": "Ask again.", "releasing": "They may have run and ended; ask again if they did not."}


class Requests(Verbs):
    """The verbs on requests."""

    @writes
    def add(self, connection: Connection, crid: Crid, *, pids: str, files: str, uid: int, now: datetime,
            tcp: str = "auto", stdio: str = "pty", force_version: bool = False, gids: Collection[int] | None = None,
            host: str = "", boot_id: str | None = None) -> Request:
        """Queue a request for an image of this host, or of another; it is durable when this returns.

        Args:
            connection: of the transaction.
            crid: of the image.
            pids: as of ``RestartOptions``.
            files: as of ``RestartOptions``.
            tcp: as of ``RestartOptions``.
            stdio: as of ``RestartOptions``.
            force_version: as of ``RestartOptions``.
            uid: of who asks.
            now: the time.
            gids: see ``Request``.
            host: of the image; this one's if it is empty.
            boot_id: the boot that has to be over before it is carried out.

        Raises:
            ImageNotFound: the image was forgotten meanwhile.
            QueueFull: too many are queued, of this user or of all.
        """
        _need_room(connection, host or self._host, None if gids is None else uid)
        if not connection.execute(select(images.c.crid).where(
                images.c.host == (host or self._host), images.c.crid == crid,
                images.c.state.in_(["ok", "damaged"])).with_for_update(read=True)).first():
            raise ImageNotFound(f"there is no image {crid}", crid=crid, hint="crctl images lists them.")
        done = connection.execute(insert(requests).values(
            host=host or self._host, crid=crid, state="queued", pids=pids, files=files, tcp=tcp, stdio=stdio,
            force_version=force_version, uid=uid, requested_at=now,
            gids=None if gids is None else sorted(gids), boot_id=boot_id))
        self._database.announce(connection)
        return _get(connection, int(done.inserted_primary_key[0]))  # type: ignore[index]

    @reads
    def get(self, connection: Connection, number: int) -> Request:
        """Return a request.

        Raises:
            RequestNotFound: there is none of that number.
        """
        return _get(connection, number)

    @reads
    def list(self, connection: Connection, *, limit: int | None = None, uid: int | None = None,
             below: int | None = None) -> list[Request]:
        """Return requests of all hosts, the newest first.

        Args:
            connection: of the transaction.
            limit: at most so many.
            uid: only those of this user.
            below: only those with a smaller number.
        """
        query = select(requests).order_by(requests.c.number.desc()).limit(limit)
        if uid is not None:
            query = query.where(requests.c.uid == uid)
        if below is not None:
            query = query.where(requests.c.number < below)
        return [Request(**row._mapping) for row in connection.execute(query)]

    @writes
    def claim(self, connection: Connection, now: datetime, boot_id: str = "") -> Request | None:
        """Take the oldest queued request of this host that has not to wait for the end of this boot, or None."""
        row = connection.execute(
            select(requests).where(requests.c.host == self._host, requests.c.state == "queued",
                                   requests.c.boot_id.is_(None) | (requests.c.boot_id != boot_id))
            .order_by(requests.c.number).limit(1).with_for_update(skip_locked=True)).first()
        if row is None:
            return None
        connection.execute(update(requests).where(requests.c.number == row.number)
                           .values(state="running", started_at=now))
        self._database.announce(connection)
        return Request(**{**row._mapping, "state": "running", "started_at": now})

    async def releasing(self, number: int, root_pid: int, root_start_time: int, boot_id: str) -> None:
        """Note that all is made and about to run; durable when this returns.

        Args:
            number: of a request that is running.
            root_pid: of the root task, as seen here.
            root_start_time: field 22 of its stat (proc(5)).
            boot_id: of the running kernel.

        Raises:
            RequestMoved: it is not running: nothing of it may be let go.
        """
        await self._pass(number, {"running"}, state="releasing", root_pid=root_pid, root_start_time=root_start_time,
                         boot_id=boot_id)

    @freeing
    async def done(self, number: int, now: datetime) -> None:
        """Note that the tasks run; raises RequestMoved if they were not being released."""
        await self._pass(number, {"releasing"}, state="done", ended_at=now)

    @freeing
    async def failed(self, number: int, now: datetime, error: CrdError) -> None:
        """Note that nothing runs, and why; raises RequestMoved if it was not being carried out."""
        await self._pass(number, {"running", "releasing"}, state="failed", ended_at=now, error=error.code,
                         message=error.message, hint=error.hint)

    @freeing
    @writes
    def cancel(self, connection: Connection, number: int, now: datetime) -> Request:
        """Cancel a request that is still queued.

        Raises:
            RequestNotFound: there is none of that number.
            RequestNotCancellable: it is being carried out, or has ended.
        """
        done = connection.execute(
            update(requests).where(requests.c.number == number, requests.c.state == "queued")
            .values(state="cancelled", ended_at=now))
        self._database.announce(connection)
        request = _get(connection, number)
        if not done.rowcount:
            raise RequestNotCancellable(f"request {number} is {request.state}", number=number)
        return request

    @reads
    def roots(self, connection: Connection, boot_id: str) -> dict[str, tuple[int, int]]:
        """Return pid and start time of what each target was restarted as last in this boot."""
        query = (select(images.c.target, requests.c.root_pid, requests.c.root_start_time)
                 .join(images, (images.c.host == requests.c.host) & (images.c.crid == requests.c.crid))
                 .where(requests.c.host == self._host, requests.c.state == "done", requests.c.boot_id == boot_id,
                        images.c.target.is_not(None))
                 .order_by(requests.c.number.desc()).limit(_ROOTS_MAX))
        rows = connection.execute(query).all()
        return {row.target: (row.root_pid, row.root_start_time) for row in reversed(rows)}

    @freeing
    @writes
    def recover(self, connection: Connection, now: datetime, boot_id: str,
                runs: Callable[[int, int], bool]) -> Sequence[str]:
        """Settle what was under way when the daemon ended; return the state that each has now.

        Args:
            connection: of the transaction.
            now: the time.
            boot_id: of the running kernel: pids of another boot mean nothing.
            runs: whether a task of that pid and start time runs.
        """
        settled: list[str] = []
        rows = connection.execute(select(requests).where(
            requests.c.host == self._host, requests.c.state.in_(["running", "releasing"]))).all()
        for row in rows:
            released = (row.state == "releasing" and row.boot_id == boot_id
                        and runs(row.root_pid, row.root_start_time))
            values: dict[str, Any] = {"state": "done"} if released else {
                "state": "failed", "error": _INTERRUPTED,
                "message": _MESSAGES[row.state], "hint": _HINTS[row.state]}
            connection.execute(update(requests).where(requests.c.number == row.number)
                               .values(ended_at=now, **values))
            settled.append(values["state"])
        self._database.announce(connection)
        return settled

    @freeing
    async def prune(self, before: datetime, boot_id: str) -> int:
        """Drop requests of this host that ended before some time, but the last of each target in this boot: its root.

        Returns:
            How many they were.
        """
        dropped = 0
        while some := await self._prune_some(before, boot_id):
            dropped += some
        return dropped

    @writes
    def _prune_some(self, connection: Connection, before: datetime, boot_id: str) -> int:
        """Drop some; return how many."""
        of_target = (images.c.host == requests.c.host) & (images.c.crid == requests.c.crid)
        roots = (select(func.max(requests.c.number)).join(images, of_target)
                 .where(requests.c.host == self._host, requests.c.state == "done", requests.c.boot_id == boot_id,
                        images.c.target.is_not(None)).group_by(images.c.target))
        numbers = connection.execute(select(requests.c.number).where(
            requests.c.host == self._host, requests.c.state.in_(_ENDED), requests.c.ended_at < before,
            requests.c.number.not_in(roots)).limit(_PRUNED_AT_ONCE)).scalars().all()
        connection.execute(delete(requests).where(requests.c.number.in_(numbers)))
        return len(numbers)

    @reads
    def queue(self, connection: Connection) -> tuple[int, int, datetime | None]:
        """Return how many are queued and running, and when the oldest queued one was asked for."""
        counted = {row[0]: row[1] for row in connection.execute(
            select(requests.c.state, func.count()).where(
                requests.c.host == self._host, requests.c.state.in_(_UNENDED)).group_by(requests.c.state))}
        oldest = connection.execute(select(requests.c.requested_at).where(
            requests.c.host == self._host, requests.c.state == "queued").order_by(requests.c.number).limit(1)).scalar()
        return counted.get("queued", 0), counted.get("running", 0) + counted.get("releasing", 0), oldest

    @writes
    def _pass(self, connection: Connection, number: int, before: set[str], /, **values: Any) -> None:
        done = connection.execute(update(requests).where(
            requests.c.number == number, requests.c.state.in_(before)).values(values))
        self._database.announce(connection)
        if not done.rowcount:
            request = _get(connection, number)
            raise RequestMoved(f"request {number} is {request.state}, and cannot become {values['state']}")


def _need_room(connection: Connection, host: str, uid: int | None) -> None:
    """Refuse to queue more than can be carried out in a while; ``uid``: of a user who is no administrator."""
    queued = select(func.count()).where(requests.c.host == host, requests.c.state == "queued")
    found = connection.execute(queued).scalar_one()
    if found >= QUEUED_MAX:
        raise QueueFull(f"{found} restarts are queued already", hint="Try again when some of them are done.")
    if uid is not None:
        found = connection.execute(queued.where(requests.c.uid == uid)).scalar_one()
        if found >= QUEUED_MAX_OF_USER:
            raise QueueFull(f"{found} of your restarts are queued already",
                            hint="Try again when some of them are done, or cancel some: crctl requests.")


def _get(connection: Connection, number: int) -> Request:
    row = connection.execute(select(requests).where(requests.c.number == number)).first()
    if row is None:
        raise RequestNotFound(f"there is no request {number}", number=number, hint="crctl requests lists them.")
    return Request(**row._mapping)
