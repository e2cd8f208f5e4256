"""Images: entered before their object is made durable, counted once it is."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, exists, func, insert, select, tuple_, update

from crd.catalog.freeing import freeing
from crd.catalog.rows import Choice, Image, Settled
from crd.catalog.schema import UNUSUAL, each_target, images, requests
from crd.catalog.settling import compare
from crd.catalog.whole import whole
from crd.errors import ImageInUse, ImageNotFound
from crd.ids import Crid

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Delete
    from sqlalchemy.engine import Row

    from crd.catalog.rows import Place
    from crd.catalog.session import Database
    from crd.ids import ImageRef

_FIELDS = [images.c[field.name] for field in fields(Image)]
_ROWS_AT_ONCE = 10_000
_THERE = images.c.state.in_(["ok", "damaged"])
_PLACE = (images.c.taken_at, images.c.crid, images.c.host)
_NEWEST_FIRST = tuple(column.desc() for column in _PLACE)
_WANTED = exists().where(requests.c.host == images.c.host, requests.c.crid == images.c.crid,
                         requests.c.state.in_(["queued", "running", "releasing"]))


@whole
class Images:
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
        self._database = database
        self._host = host
        self._own = images.c.host == host

    async def begin(self, image: Image) -> None:
        """Enter an image whose object is about to be made durable."""
        async with self._database.begin() as connection:
            await connection.execute(insert(images).values(asdict(image) | {"state": "storing"}))

    @freeing
    async def finish(self, crid: Crid, stored_bytes: int) -> Image:
        """Count an image whose object is durable, and return its row."""
        async with self._database.begin() as connection:
            row = (await connection.execute(update(images).where(self._own, images.c.crid == crid).values(
                state="ok", stored_bytes=stored_bytes).returning(*_FIELDS))).first()
        if row is None:
            raise _not_found(crid)
        return _image(row)

    @freeing
    async def drop(self, crid: Crid) -> None:
        """Take back an image whose object did not become durable."""
        async with self._database.begin() as connection:
            await connection.execute(delete(images).where(
                self._own, images.c.crid == crid, images.c.state == "storing"))

    @freeing
    async def forget(self, crid: Crid) -> None:
        """Count an image no more; its object may be removed once this returns, and then ``bury`` follows.

        Raises:
            ImageNotFound: as ``get``.
            ImageInUse: it is pinned, or a restart of it is asked for.
        """
        async with self._database.begin() as connection:
            row = (await connection.execute(select(images.c.pinned, _WANTED.label("wanted")).where(
                self._own, images.c.crid == crid, _THERE).with_for_update(of=images))).first()
            if row is None:
                raise _not_found(crid)
            if row.pinned:
                raise ImageInUse(f"image {crid} is pinned", crid=crid, hint="crctl pin --remove lets go of it.")
            if row.wanted:
                raise ImageInUse(f"a restart of image {crid} is asked for", crid=crid,
                                 hint="Wait for it, or cancel it: crctl requests.")
            await connection.execute(update(images).where(self._own, images.c.crid == crid).values(state="forgotten"))

    @freeing
    async def bury(self, crid: Crid) -> None:
        """Remove the row of a forgotten image whose object is gone, unless a request or the largest crid needs it."""
        async with self._database.begin(is_durable=False) as connection:
            await connection.execute(_burial(self._host, crid))

    @freeing
    async def pin(self, crid: Crid, *, pinned: bool) -> Image:
        """Keep an image until it is unpinned, or let go of it; raises as ``get``."""
        return await self._set(crid, pinned=pinned)

    async def verified(self, crid: Crid, now: datetime) -> Image:
        """Note that all that is stored of an image is as it should be; raises as ``get``."""
        return await self._set(crid, state="ok", damage=None, verified_at=now)

    async def damaged(self, crid: Crid, damage: str) -> Image:
        """Note what is wrong with an image: it is not restarted any more; raises as ``get``."""
        return await self._set(crid, state="damaged", damage=damage)

    async def choices(self, target: str) -> list[Choice]:
        """Return what retention has to know of the images of a target."""
        query = select(images.c.crid, images.c.taken_at, images.c.pinned, images.c.state, images.c.stored_bytes,
                       _WANTED.label("wanted")).where(self._own, images.c.target == target, _THERE)
        async with self._database.read() as connection:
            return [Choice(crid=row.crid, taken_at=row.taken_at, pinned=row.pinned, damaged=row.state == "damaged",
                           stored_bytes=row.stored_bytes, wanted=row.wanted)
                    for row in await connection.execute(query)]

    async def unchecked_since(self, when: datetime, but: Collection[Crid] = ()) -> Image | None:
        """Return the image that was not checked for longest, if it was not since then; none that is damaged."""
        good = select(*_FIELDS).where(self._own, images.c.state == "ok").limit(1)
        if but:
            good = good.where(images.c.crid.not_in(but))
        never = good.where(images.c.verified_at.is_(None), images.c.taken_at < when).order_by(
            images.c.verified_at, images.c.taken_at)  # all NULL: PostgreSQL sees the order of its index only so
        once = good.where(images.c.verified_at < when).order_by(images.c.verified_at)
        async with self._database.read() as connection:
            found = [_image(row) for query in (never, once) for row in await connection.execute(query)]
        return min(found, key=lambda image: image.verified_at or image.taken_at, default=None)

    async def _set(self, crid: Crid, **values: Any) -> Image:
        async with self._database.begin() as connection:
            await connection.execute(update(images).where(self._own, images.c.crid == crid, _THERE).values(values))
        return await self.get(crid)

    @freeing
    async def settle(self, there: Collection[Crid], whole: Mapping[Crid, int],
                     left: Collection[Crid] | None = None) -> Settled:
        """Bring the rows together with what is in the archive, after whatever ended the daemon.

        Args:
            there: all images that the archive has.
            whole: of those that ``storing`` returns, the ones whose object has the digest of the row; with the bytes
                stored.
            left: what ``storing`` returned when the daemon began, if some may be under way by now.

        Returns:
            What was done, and what is left to be done.
        """
        objects = sorted(there)
        async with self._database.begin() as connection:
            rows = await connection.stream(
                select(images.c.crid, images.c.state).where(self._own).order_by(images.c.crid))
            found = await compare(rows.partitions(_ROWS_AT_ONCE), objects, whole, left)
            for crid in found.kept:
                await connection.execute(update(images).where(self._own, images.c.crid == crid)
                                         .values(state="ok", stored_bytes=whole[crid]))
            for crid in found.dropped:
                await connection.execute(delete(images).where(self._own, images.c.crid == crid))
            for crid in found.buried:
                await connection.execute(_burial(self._host, crid))
        return Settled(kept=found.kept, dropped=found.dropped, surplus=found.surplus, unknown=found.unknown,
                       missing=found.missing)

    async def without_row(self, there: Collection[Crid]) -> Sequence[Crid]:
        """Return which of the images that the archive has, listed before, have no row at all."""
        async with self._database.read() as connection:
            rows = await connection.stream(
                select(images.c.crid, images.c.state).where(self._own).order_by(images.c.crid))
            found = await compare(rows.partitions(_ROWS_AT_ONCE), sorted(there), {}, ())
        return found.unknown

    async def storing(self) -> list[Image]:
        """Return what was being made durable when the daemon ended."""
        async with self._database.read() as connection:
            rows = await connection.execute(select(*_FIELDS).where(self._own, UNUSUAL,
                                                                   images.c.state == "storing"))
            return [_image(row) for row in rows]

    async def get(self, crid: Crid, host: str = "") -> Image:
        """Return an image, of this host or of another.

        Raises:
            ImageNotFound: there is none of that crid, or it was forgotten.
        """
        async with self._database.read() as connection:
            row = (await connection.execute(select(*_FIELDS).where(
                images.c.host == (host or self._host), images.c.crid == crid, _THERE))).first()
        if row is None:
            raise _not_found(crid, host)
        return _image(row)

    async def find(self, reference: ImageRef) -> Image:
        """Return the image that a reference means; raises as ``get``."""
        if reference.crid is not None:
            return await self.get(reference.crid, reference.host)
        query = select(*_FIELDS).where(images.c.target == reference.target, _THERE, self._own)
        if reference.until:
            query = query.where(images.c.taken_at <= reference.until)
        query = query.order_by(*_NEWEST_FIRST).limit(1)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise ImageNotFound(f"there is no image of target {reference.target}"
                                + (f" from before {reference.until:%Y-%m-%d %H:%M:%S}" if reference.until else ""),
                                hint="crctl images lists them.")
        return _image(row)

    async def list(self, *, target: str | None = None, since: datetime | None = None, limit: int | None = None,
                   uid: int | None = None, after: Place | None = None) -> Sequence[Image]:
        """Return images of all hosts, the newest first.

        Args:
            target: only of this one.
            since: only those taken at or after.
            limit: at most so many.
            uid: only of tasks that ran as this user.
            after: only those behind this place.
        """
        query = select(*_FIELDS).where(_THERE)
        if target is not None:
            query = query.where(images.c.target == target)
        if since is not None:
            query = query.where(images.c.taken_at >= since)
        if uid is not None:
            query = query.where(images.c.uid == uid)
        if after is not None:
            query = query.where(images.c.taken_at <= after.taken_at, tuple_(*_PLACE) < after)
        query = query.order_by(*_NEWEST_FIRST).limit(limit)
        async with self._database.read() as connection:
            return [_image(row) for row in await connection.execute(query)]

    async def own(self, *, below: int | None = None, limit: int) -> Sequence[Image]:
        """Return images of this host, the largest crid first, only those below one."""
        query = select(*_FIELDS).where(self._own, _THERE).order_by(images.c.crid.desc()).limit(limit)
        if below is not None:
            query = query.where(images.c.crid < below)
        async with self._database.read() as connection:
            return [_image(row) for row in await connection.execute(query)]

    async def count(self) -> int:
        """Return how many images this host has."""
        async with self._database.read() as connection:
            return (await connection.execute(select(func.count()).where(self._own, _THERE))).scalar_one()

    async def relative(self, pid: int, target: str | None) -> Crid | None:
        """Return the newest undamaged image of a process or of its target, None if there is none."""
        good = select(images.c.crid).where(self._own, images.c.state == "ok").order_by(images.c.crid.desc()).limit(1)
        of_either = [good.where(images.c.pid == pid)]
        if target is not None:
            of_either.append(good.where(images.c.target == target))
        async with self._database.read() as connection:
            crids = [(await connection.execute(query)).scalar() for query in of_either]
        return max((Crid(crid) for crid in crids if crid is not None), default=None)

    async def last_taken(self) -> dict[str, datetime]:
        """Return when the newest undamaged image of each target was taken."""
        names = each_target(images, self._host)
        newest = select(images.c.taken_at).where(
            self._own, images.c.target == names.c.target, images.c.state == "ok").order_by(
            images.c.crid.desc()).limit(1).scalar_subquery()
        async with self._database.read() as connection:
            rows = await connection.execute(select(names.c.target, newest.label("taken_at")).where(
                names.c.target.is_not(None)))
            return {row.target: row.taken_at for row in rows if row.taken_at}

    async def damaged_ones(self, *, limit: int) -> Sequence[Crid]:
        """Return some of the images that are damaged."""
        query = select(images.c.crid).where(self._own, UNUSUAL, images.c.state == "damaged").limit(limit)
        async with self._database.read() as connection:
            return sorted(Crid(crid) for crid in (await connection.execute(query)).scalars())

    async def forgotten(self) -> Sequence[Crid]:
        """Return the images that are forgotten, but not buried: an object may be there, or a request needs the row."""
        query = select(images.c.crid).where(self._own, UNUSUAL, images.c.state == "forgotten")
        async with self._database.read() as connection:
            return sorted(Crid(crid) for crid in (await connection.execute(query)).scalars())

    async def among(self, crids: Collection[Crid]) -> Sequence[Crid]:
        """Return those of a few crids that are images here."""
        async with self._database.read() as connection:
            found = await connection.execute(select(images.c.crid).where(self._own, images.c.crid.in_(crids), _THERE))
            return sorted(Crid(crid) for crid in found.scalars())

    async def last_verified(self) -> datetime | None:
        """Return when an image was last checked, None if never."""
        async with self._database.read() as connection:
            found: datetime | None = (await connection.execute(
                select(func.max(images.c.verified_at)).where(self._own))).scalar()
        return found

    async def max_crid(self) -> int:
        """Return the largest crid ever entered, 0 if none."""
        async with self._database.read() as connection:
            return int((await connection.execute(select(func.max(images.c.crid)).where(self._own))).scalar() or 0)


def _burial(host: str, crid: Crid) -> Delete:
    largest = select(func.max(images.c.crid).label("crid")).where(images.c.host == host).subquery()
    return delete(images).where(
        images.c.host == host, images.c.crid == crid, images.c.state == "forgotten",
        images.c.crid < select(largest.c.crid).scalar_subquery(),
        ~exists().where(requests.c.host == host, requests.c.crid == crid))


def _image(row: Row[Any]) -> Image:
    return Image(**row._mapping)


def _not_found(crid: Crid, host: str = "") -> ImageNotFound:
    of = f" of host {host}" if host else ""
    return ImageNotFound(f"there is no image {crid}{of}", crid=crid, hint="crctl images lists them.")
