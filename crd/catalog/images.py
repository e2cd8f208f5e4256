"""Images: entered before their object is made durable, counted once it is."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, exists, func, insert, select, tuple_, update

from crd.catalog.rows import Choice, Image, Settled
from crd.catalog.schema import UNUSUAL, each_target, has_tag, images, requests
from crd.catalog.settling import compare
from crd.catalog.verbs import Verbs, freeing, reads, writes, writes_hastily
from crd.errors import BadRequest, ImageInUse, ImageNotFound, TagNotFound
from crd.ids import Crid

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection, Row

    from crd.catalog.rows import Place
    from crd.catalog.session import Database
    from crd.ids import ImageRef

_NAMES = [field.name for field in fields(Image)]
_FIELDS = [images.c[name] for name in _NAMES]
_ROWS_AT_ONCE = 10_000
_TAGS_MAX = 16
_UNENDED = ["queued", "running", "releasing"]
_THERE = images.c.state.in_(["ok", "damaged"])
_PLACE = (images.c.taken_at, images.c.crid, images.c.host)
_NEWEST_FIRST = tuple(column.desc() for column in _PLACE)
_ONE = (images.c.host == bindparam("of_host"), images.c.crid == bindparam("of_crid"))
_WANTED = exists().where(requests.c.host == images.c.host, requests.c.crid == images.c.crid,
                         requests.c.state.in_(_UNENDED))

# What each checkpoint takes is put together once: to do so each time takes longer than SQLite does.
_BEGIN = insert(images)
_FINISH = update(images).where(*_ONE).values(state="ok", stored_bytes=bindparam("stored")).returning(*_FIELDS)
_FORGETTABLE = select(images.c.pinned, _WANTED.label("wanted")).where(*_ONE, _THERE).with_for_update(of=images)
_FORGET = update(images).where(*_ONE).values(state="forgotten")
_LARGEST = select(func.max(images.c.crid).label("crid")).where(images.c.host == bindparam("of_host")).subquery()
_BURY = delete(images).where(
    *_ONE, images.c.state == "forgotten", images.c.crid < select(_LARGEST.c.crid).scalar_subquery(),
    ~exists().where(requests.c.host == bindparam("of_host"), requests.c.crid == bindparam("of_crid")))
_CHOICES = select(images.c.crid, images.c.taken_at, images.c.pinned, images.c.state == "damaged",
                  images.c.stored_bytes).where(images.c.host == bindparam("of_host"),
                                               images.c.target == bindparam("of_target"), _THERE)
_ALL_WANTED = select(requests.c.crid).where(requests.c.host == bindparam("of_host"), requests.c.state.in_(_UNENDED))
_NEWEST_GOOD = select(images.c.crid).where(images.c.host == bindparam("of_host"), images.c.state == "ok").order_by(
    images.c.crid.desc()).limit(1)
_RELATIVES = (_NEWEST_GOOD.where(images.c.pid == bindparam("of_pid")),
              _NEWEST_GOOD.where(images.c.target == bindparam("of_target")))


class Images(Verbs):
    """The verbs on images.

    A crash can fall between an object and its row.  So the row comes first, in state ``storing``, with the digest that
    the object will have (``begin``); then the object is made durable, and then visible, in the archive; then the row
    becomes ``ok`` (``finish``), and only then is the image acknowledged.  If the object did not come about, the row
    goes (``drop``).  An image is forgotten the other way round: the row first (``forget``), then the object.

    So a crash leaves one of these, and ``settle`` ends each: a ``storing`` row with its object, whole since the archive
    lists no other: it is ``ok``.  A ``storing`` row without: it goes.  A ``forgotten`` row with its object: that is to
    be removed.  Nothing acknowledged is lost, nothing half-written is taken for an image.  What no crash of crd leaves
    is an object without any row: then the catalog was lost or replaced, and the object may be all that is left of an
    image.  It is named, and never removed.
    """

    def __init__(self, database: Database, host: str) -> None:
        """Work on a database, for a host, whose images are meant where no other is named."""
        super().__init__(database, host)
        self._own = images.c.host == host

    def _one(self, crid: Crid) -> dict[str, Any]:
        """Return what names an image to a statement."""
        return {"of_host": self._host, "of_crid": crid}

    @freeing
    @writes
    def begin(self, connection: Connection, image: Image) -> None:
        """Enter an image whose object is about to be made durable."""
        connection.execute(_BEGIN, asdict(image) | {"state": "storing"})

    @writes
    def finish(self, connection: Connection, crid: Crid, stored_bytes: int) -> Image:
        """Count an image whose object is durable, and return its row."""
        row = connection.execute(_FINISH, self._one(crid) | {"stored": stored_bytes}).first()
        if row is None:
            raise _not_found(crid)
        return _image(row)

    @freeing
    @writes
    def drop(self, connection: Connection, crid: Crid) -> None:
        """Take back an image whose object did not become durable."""
        connection.execute(delete(images).where(self._own, images.c.crid == crid, images.c.state == "storing"))

    @freeing
    @writes
    def forget(self, connection: Connection, crid: Crid) -> None:
        """Count an image no more; its object may be removed once this returns, and then ``bury`` follows.

        Raises:
            ImageNotFound: as ``get``.
            ImageInUse: it is pinned, or a restart of it is asked for.
        """
        row = connection.execute(_FORGETTABLE, self._one(crid)).first()
        if row is None:
            raise _not_found(crid)
        if row.pinned:
            raise ImageInUse(f"image {crid} is pinned", crid=crid, hint="crctl pin --remove lets go of it.")
        if row.wanted:
            raise ImageInUse(f"a restart of image {crid} is asked for", crid=crid,
                             hint="Wait for it, or cancel it: crctl requests.")
        connection.execute(_FORGET, self._one(crid))

    @freeing
    @writes_hastily
    def bury(self, connection: Connection, crid: Crid) -> None:
        """Remove the row of a forgotten image whose object is gone, unless a request or the largest crid needs it."""
        connection.execute(_BURY, self._one(crid))

    @freeing
    async def pin(self, crid: Crid, *, pinned: bool) -> Image:
        """Keep an image until it is unpinned, or let go of it; raises as ``get``."""
        return await self._set(crid, pinned=pinned)

    @writes
    def tag(self, connection: Connection, crid: Crid, add: Collection[str], remove: Collection[str]) -> Image:
        """Take tags away from an image, and then give it others; those that it has already stay where they are.

        Raises:
            ImageNotFound: as ``get``.
            TagNotFound: it does not have one of those that are to go.
            BadRequest: it would have too many.
        """
        row = connection.execute(select(images.c.tags).where(*_ONE, _THERE).with_for_update(), self._one(crid)).first()
        if row is None:
            raise _not_found(crid)
        if missing := [tag for tag in remove if tag not in row.tags]:
            raise TagNotFound(f"image {crid} has no tag {missing[0]!r}", crid=crid,
                              hint=f"crctl show {crid} lists them.")
        tags = [*dict.fromkeys((*(tag for tag in row.tags if tag not in remove), *add))]
        if len(tags) > _TAGS_MAX:
            raise BadRequest(f"image {crid} would have {len(tags)} tags, of at most {_TAGS_MAX}",
                             hint=f"Take some away: crctl tag {crid} --remove TAG.")
        return self._changed(connection, crid, {"tags": tags})

    async def note(self, crid: Crid, text: str | None) -> Image:
        """Remember a text with an image in the place of what there was, or nothing; raises as ``get``."""
        return await self._set(crid, note=text)

    async def verified(self, crid: Crid, now: datetime) -> Image:
        """Note that all that is stored of an image is as it should be; raises as ``get``."""
        return await self._set(crid, state="ok", damage=None, verified_at=now)

    async def damaged(self, crid: Crid, damage: str) -> Image:
        """Note what is wrong with an image: it is not restarted any more; raises as ``get``."""
        return await self._set(crid, state="damaged", damage=damage)

    @reads
    def choices(self, connection: Connection, target: str) -> list[Choice]:
        """Return what retention has to know of the images of a target."""
        wanted = {*connection.execute(_ALL_WANTED, {"of_host": self._host}).scalars()}
        found = connection.execute(_CHOICES, {"of_host": self._host, "of_target": target}).all()
        return [Choice(Crid(crid), taken_at, pinned, damaged, stored_bytes, crid in wanted)
                for crid, taken_at, pinned, damaged, stored_bytes in found]

    @reads
    def unchecked_since(self, connection: Connection, when: datetime, but: Collection[Crid] = ()) -> Image | None:
        """Return the image that was not checked for longest, if it was not since then; none that is damaged."""
        good = select(*_FIELDS).where(self._own, images.c.state == "ok").limit(1)
        if but:
            good = good.where(images.c.crid.not_in(but))
        never = good.where(images.c.verified_at.is_(None), images.c.taken_at < when).order_by(
            images.c.verified_at, images.c.taken_at)  # all NULL: PostgreSQL sees the order of its index only so
        once = good.where(images.c.verified_at < when).order_by(images.c.verified_at)
        found = [_image(row) for query in (never, once) for row in connection.execute(query)]
        return min(found, key=lambda image: image.verified_at or image.taken_at, default=None)

    @writes
    def _set(self, connection: Connection, crid: Crid, /, **values: Any) -> Image:
        return self._changed(connection, crid, values)

    def _changed(self, connection: Connection, crid: Crid, values: dict[str, Any]) -> Image:
        row = connection.execute(update(images).where(self._own, images.c.crid == crid, _THERE).values(
            values).returning(*_FIELDS)).first()
        if row is None:
            raise _not_found(crid)
        return _image(row)

    @freeing
    @writes
    def settle(self, connection: Connection, there: Collection[Crid], whole: Mapping[Crid, int],
               left: Collection[Crid] | None = None) -> Settled:
        """Bring the rows together with what is in the archive, after whatever ended the daemon.

        Args:
            connection: of the transaction.
            there: all images that the archive has.
            whole: of those that ``storing`` returns, the ones whose object has the digest of the row; with the bytes
                stored.
            left: what ``storing`` returned when the daemon began, if some may be under way by now.

        Returns:
            What was done, and what is left to be done.
        """
        found = compare(self._states(connection), sorted(there), whole, left)
        for crid in found.kept:
            connection.execute(update(images).where(self._own, images.c.crid == crid)
                               .values(state="ok", stored_bytes=whole[crid]))
        for crid in found.dropped:
            connection.execute(delete(images).where(self._own, images.c.crid == crid))
        for crid in found.buried:
            connection.execute(_BURY, self._one(crid))
        return Settled(kept=found.kept, dropped=found.dropped, surplus=found.surplus, unknown=found.unknown,
                       missing=found.missing)

    @reads
    def without_row(self, connection: Connection, there: Collection[Crid]) -> Sequence[Crid]:
        """Return which of the images that the archive has, listed before, have no row at all."""
        return compare(self._states(connection), sorted(there), {}, ()).unknown

    def _states(self, connection: Connection) -> Iterator[Sequence[tuple[int, str]]]:
        """Return crid and state of every image in ascending order, many at a time."""
        return connection.execution_options(yield_per=_ROWS_AT_ONCE).execute(
            select(images.c.crid, images.c.state).where(self._own).order_by(images.c.crid)).partitions()

    @reads
    def storing(self, connection: Connection) -> list[Image]:
        """Return what was being made durable when the daemon ended."""
        return [_image(row) for row in connection.execute(
            select(*_FIELDS).where(self._own, UNUSUAL, images.c.state == "storing"))]

    @reads
    def get(self, connection: Connection, crid: Crid, host: str = "") -> Image:
        """Return an image, of this host or of another.

        Raises:
            ImageNotFound: there is none of that crid, or it was forgotten.
        """
        return _got(connection, crid, host or self._host)

    @reads
    def find(self, connection: Connection, reference: ImageRef) -> Image:
        """Return the image that a reference means; raises as ``get``."""
        if reference.crid is not None:
            return _got(connection, reference.crid, reference.host or self._host)
        query = select(*_FIELDS).where(images.c.target == reference.target, _THERE, self._own)
        if reference.until:
            query = query.where(images.c.taken_at <= reference.until)
        query = query.order_by(*_NEWEST_FIRST).limit(1)
        row = connection.execute(query).first()
        if row is None:
            raise ImageNotFound(f"there is no image of target {reference.target}"
                                + (f" from before {reference.until:%Y-%m-%d %H:%M:%S}" if reference.until else ""),
                                hint="crctl images lists them.")
        return _image(row)

    @reads
    def list(self, connection: Connection, *, target: str | None = None, tag: str | None = None,
             since: datetime | None = None, limit: int | None = None, uid: int | None = None,
             after: Place | None = None) -> Sequence[Image]:
        """Return images of all hosts, the newest first.

        Args:
            connection: of the transaction.
            target: only of this one.
            tag: only those that have it.
            since: only those taken at or after.
            limit: at most so many.
            uid: only of tasks that ran as this user.
            after: only those behind this place.
        """
        query = select(*_FIELDS).where(_THERE)
        if target is not None:
            query = query.where(images.c.target == target)
        if tag is not None:
            query = query.where(has_tag(tag, connection.dialect))
        if since is not None:
            query = query.where(images.c.taken_at >= since)
        if uid is not None:
            query = query.where(images.c.uid == uid)
        if after is not None:
            query = query.where(images.c.taken_at <= after.taken_at, tuple_(*_PLACE) < after)
        query = query.order_by(*_NEWEST_FIRST).limit(limit)
        return [_image(row) for row in connection.execute(query).all()]

    @reads
    def own(self, connection: Connection, *, below: int | None = None, limit: int) -> Sequence[Image]:
        """Return images of this host, the largest crid first, only those below one."""
        query = select(*_FIELDS).where(self._own, _THERE).order_by(images.c.crid.desc()).limit(limit)
        if below is not None:
            query = query.where(images.c.crid < below)
        return [_image(row) for row in connection.execute(query).all()]

    @reads
    def count(self, connection: Connection) -> int:
        """Return how many images this host has."""
        return connection.execute(select(func.count()).where(self._own, _THERE)).scalar_one()

    @reads
    def relative(self, connection: Connection, pid: int, target: str | None) -> Crid | None:
        """Return the newest undamaged image of a process or of its target, None if there is none."""
        of_either = {"of_host": self._host, "of_pid": pid, "of_target": target}  # of no target is none: NULL
        crids = [connection.execute(query, of_either).scalar() for query in _RELATIVES]
        return max((Crid(crid) for crid in crids if crid is not None), default=None)

    @reads
    def last_taken(self, connection: Connection) -> dict[str, datetime]:
        """Return when the newest undamaged image of each target was taken."""
        names = each_target(images, self._host)
        newest = select(images.c.taken_at).where(
            self._own, images.c.target == names.c.target, images.c.state == "ok").order_by(
            images.c.crid.desc()).limit(1).scalar_subquery()
        rows = connection.execute(select(names.c.target, newest.label("taken_at")).where(
            names.c.target.is_not(None)))
        return {row.target: row.taken_at for row in rows if row.taken_at}

    @reads
    def damaged_ones(self, connection: Connection, *, limit: int) -> Sequence[Crid]:
        """Return some of the images that are damaged."""
        query = select(images.c.crid).where(self._own, UNUSUAL, images.c.state == "damaged").limit(limit)
        return sorted(Crid(crid) for crid in connection.execute(query).scalars())

    @reads
    def forgotten(self, connection: Connection) -> Sequence[Crid]:
        """Return the images that are forgotten, but not buried: an object may be there, or a request needs the row."""
        query = select(images.c.crid).where(self._own, UNUSUAL, images.c.state == "forgotten")
        return sorted(Crid(crid) for crid in connection.execute(query).scalars())

    @reads
    def among(self, connection: Connection, crids: Collection[Crid]) -> Sequence[Crid]:
        """Return those of a few crids that are images here."""
        found = connection.execute(select(images.c.crid).where(self._own, images.c.crid.in_(crids), _THERE))
        return sorted(Crid(crid) for crid in found.scalars())

    @reads
    def last_verified(self, connection: Connection) -> datetime | None:
        """Return when an image was last checked, None if never."""
        found: datetime | None = connection.execute(
            select(func.max(images.c.verified_at)).where(self._own)).scalar()
        return found

    @reads
    def max_crid(self, connection: Connection) -> int:
        """Return the largest crid ever entered, 0 if none."""
        return int(connection.execute(select(func.max(images.c.crid)).where(self._own)).scalar() or 0)


def _got(connection: Connection, crid: Crid, host: str) -> Image:
    row = connection.execute(select(*_FIELDS).where(images.c.host == host, images.c.crid == crid, _THERE)).first()
    if row is None:
        raise _not_found(crid, host)
    return _image(row)


def _image(row: Row[Any]) -> Image:
    return Image(**dict(zip(_NAMES, row, strict=True)))


def _not_found(crid: Crid, host: str = "") -> ImageNotFound:
    of = f" of host {host}" if host else ""
    return ImageNotFound(f"there is no image {crid}{of}", crid=crid, hint="crctl images lists them.")
