"""Images: entered before their object is made durable, counted once it is."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, insert, select, update

from crd.catalog.rows import Image
from crd.catalog.schema import images
from crd.errors import ImageNotFound

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.engine import Row

    from crd.catalog.session import Database
    from crd.ids import Crid, ImageRef

_FIELDS = [images.c[field.name] for field in fields(Image)]


class Images:
    """The verbs on images.

    A crash can fall between the object and its row.  So the row comes first, in state ``storing``, with the digest that
    the object will have; then the object is made durable; then the row becomes ``ok``.  After a crash every ``storing``
    row either finds its object, and is ``ok``, or does not, and goes (``settle``).
    """

    def __init__(self, database: Database) -> None:
        """Work on a database."""
        self._database = database

    async def begin(self, image: Image) -> None:
        """Enter an image whose object is about to be made durable."""
        async with self._database.begin() as connection:
            await connection.execute(insert(images).values(asdict(image) | {"state": "storing"}))

    async def finish(self, crid: Crid, stored_bytes: int) -> Image:
        """Count an image whose object is durable, and return its row."""
        async with self._database.begin() as connection:
            await connection.execute(update(images).where(images.c.crid == crid)
                                     .values(state="ok", stored_bytes=stored_bytes))
        return await self.get(crid)

    async def drop(self, crid: Crid) -> None:
        """Take back an image whose object did not become durable."""
        async with self._database.begin() as connection:
            await connection.execute(delete(images).where(images.c.crid == crid, images.c.state == "storing"))

    async def storing(self) -> list[Image]:
        """Return what was being made durable when the daemon ended."""
        async with self._database.begin() as connection:
            rows = await connection.execute(select(*_FIELDS).where(images.c.state == "storing"))
            return [_image(row) for row in rows]

    async def get(self, crid: Crid) -> Image:
        """Return an image.

        Raises:
            ImageNotFound: there is none of that crid, or it was forgotten.
        """
        async with self._database.begin() as connection:
            row = (await connection.execute(select(*_FIELDS).where(images.c.crid == crid,
                                                                   images.c.state == "ok"))).first()
        if row is None:
            raise ImageNotFound(f"there is no image {crid}", crid=crid, hint="crctl images lists them.")
        return _image(row)

    async def find(self, reference: ImageRef, host: str) -> Image:
        """Return the image that a reference means; raises as ``get``."""
        if reference.crid is not None:
            image = await self.get(reference.crid)
            if reference.host and image.host != reference.host:
                raise ImageNotFound(f"there is no image {reference.crid} of host {reference.host}")
            return image
        query = select(*_FIELDS).where(images.c.target == reference.target, images.c.state == "ok",
                                       images.c.host == host)
        if reference.until:
            query = query.where(images.c.taken_at <= reference.until)
        async with self._database.begin() as connection:
            row = (await connection.execute(query.order_by(images.c.taken_at.desc()).limit(1))).first()
        if row is None:
            raise ImageNotFound(f"there is no image of target {reference.target}"
                                + (f" from before {reference.until:%Y-%m-%d %H:%M:%S}" if reference.until else ""),
                                hint="crctl images lists them.")
        return _image(row)

    async def list(self, *, target: str | None = None, since: datetime | None = None, limit: int | None = None,
                   uid: int | None = None) -> Sequence[Image]:
        """Return images, the newest first.

        Args:
            target: only of this one.
            since: only those taken at or after.
            limit: at most so many.
            uid: only of tasks that ran as this user.
        """
        query = select(*_FIELDS).where(images.c.state == "ok")
        if target is not None:
            query = query.where(images.c.target == target)
        if since is not None:
            query = query.where(images.c.taken_at >= since)
        if uid is not None:
            query = query.where(images.c.uid == uid)
        query = query.order_by(images.c.crid.desc()).limit(limit)
        async with self._database.begin() as connection:
            return [_image(row) for row in await connection.execute(query)]

    async def max_crid(self) -> int:
        """Return the largest crid ever entered, 0 if none."""
        async with self._database.begin() as connection:
            return int((await connection.execute(select(func.max(images.c.crid)))).scalar() or 0)


def _image(row: Row[Any]) -> Image:
    return Image(**row._mapping)
