"""The archive: images by crid, over a store."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.archive.base import known_pages
from crd.archive.damage import hurt_by
from crd.archive.heads import Heads, read_head
from crd.archive.names import image_key, numbered, pack_key
from crd.archive.references import References, Sharing
from crd.archive.sink import ImageSink, Stored
from crd.archive.source import ImageSource, open_source
from crd.archive.threads import in_thread
from crd.errors import ArchiveUnavailable, BlobCorrupt, BlobMissing
from crd.ids import Crid

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from crd.archive.stores.store import Store
    from crd.reserve import Reserve

logger = logging.getLogger(__name__)

_THREADS_MAX = 8192
"""More than images under way ever have: one that waits for its stream must not keep others waiting."""


@dataclass(frozen=True, slots=True)
class ArchiveSize:
    """What the archive holds: images, and the bytes of all objects."""

    images: int
    stored_bytes: int


class Archive:
    """Keeps image streams.  An async context manager."""

    def __init__(self, store: Store, *, level: int = 1, threads: int = 2, away: bool = False,
                 needs: Path | None = None, reserve: Reserve | None = None) -> None:
        """Keep images in a store.

        Args:
            store: where.
            level: of zstd, 1 to 19.
            threads: that compress, or decompress, one image.
            away: the store cannot be read yet: ``arrive`` when it can.
            needs: the file that knows what images need (``crd.archive.needs``); None: they are all read at the start.
            reserve: room on the disk where that file is, for what makes room there.

        Raises:
            ArchiveFull, ArchiveUnavailable: that file cannot be made.
        """
        self._store = store
        self._away = away
        self._level = level
        self._threads = threads
        self._reserve = reserve
        self._references = References(store, needs, away=away, reserve=reserve)
        self._heads = Heads()
        self._executor = ThreadPoolExecutor(_THREADS_MAX, "crd-compress")

    async def __aenter__(self) -> Self:
        await self._store.clear_torn()
        if not self._away:
            await self.arrive()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        """End the threads, and close what is known; nothing may be under way."""
        self._executor.shutdown()
        self._references.close()

    async def arrive(self) -> None:
        """Find out what is there; raises ArchiveUnavailable: the store cannot be read."""
        await self._references.load()

    @property
    def is_known(self) -> bool:
        """Whether the store is there, or has been since we began."""
        return self._references.are_known

    def describe(self) -> str:
        """Return where the store is."""
        return self._store.describe()

    async def sink(self, base: Crid | None = None, *, follow: bool = False) -> ImageSink:
        """Begin an image; ``commit`` it or not, and ``abort`` it in the end.

        Args:
            base: an image that is likely to have many of its pages: what is equal is not stored again.  It may be
                forgotten at any time, and no harm is done if it is damaged or missing.
            follow: the stream would like to leave out what is as in the base; the sink says whether it may.

        Raises:
            ArchiveFull, ArchiveUnavailable: there is no room for it.
        """
        needs = await self._references.sound(base) if base is not None else []
        packs = [pack for pack, _ in needs]
        self._references.hold(packs)
        try:
            head = self._heads.get(base) if follow and base is not None else None
            known = await in_thread(head.known, packs) if head else None
            known = known or await known_pages(self._store, self._references, needs)
        except BaseException:
            await asyncio.shield(self._references.release(packs))
            raise
        self._references.hold(known.packs)
        try:
            await asyncio.shield(self._references.release(packs))
            upload = await self._store.create(pack_key(known.packs[0]))
            return ImageSink(self._store, self._references, upload, known, self._heads, self._executor,
                             level=self._level, threads=self._threads)
        except BaseException:
            await asyncio.shield(self._references.release(known.packs))
            raise

    async def recall(self, crid: Crid, digest: str) -> None:
        """Know again of an image what those that follow it need, if its packs are whole and it has this digest."""
        try:
            if head := await read_head(self._store, self._references, crid, digest):
                self._heads.put(crid, head)
        except (BlobCorrupt, BlobMissing, ArchiveUnavailable) as error:
            logger.info("no image can follow %d: %s", crid, error.message, extra={"event": "archive.not-followed"})

    async def source(self, crid: Crid) -> ImageSource:
        """Open an image; raises as ``open_source``."""
        return await open_source(self._store, self._references, crid, threads=self._threads)

    async def forget(self, crid: Crid) -> list[str]:
        """Remove an image durably, and what no other needs; nothing if there is none.

        Returns:
            The keys of what is not there any more, be it that it was not there before.
        """
        self._heads.drop(crid)
        await self._store.delete(image_key(crid))
        packs = await self._references.forget(crid)
        if self._reserve:
            await in_thread(self._reserve.take)  # before the next image has the room
        return [image_key(crid), *map(pack_key, packs)]

    async def may_sweep(self) -> bool:
        """Whether there may be anything to sweep: that costs nothing, however much is there."""
        return await self._references.may_sweep()

    async def sweep(self) -> list[str]:
        """Remove what no image needs and what could not be removed when that came to be; return the keys."""
        return [pack_key(pack) for pack in await self._references.sweep()]

    @property
    def hindrance(self) -> str:
        """Why nothing but images is removed just now; empty: nothing keeps us from it."""
        return self._references.hindrance

    async def objects(self) -> dict[str, int]:
        """Return the keys of all that is there, with their bytes; raises ArchiveUnavailable."""
        return await self._store.objects()

    async def crids(self) -> list[Crid]:
        """Return the images that are there whole, in ascending order."""
        return [Crid(crid) for crid in numbered(await self._store.objects(), "image")]

    async def stored(self, crid: Crid) -> Stored:
        """Return what is known of an image from its objects alone; raises as ``open_source``."""
        source = await open_source(self._store, self._references, crid, threads=self._threads)
        return Stored(crid, source.manifest.digest.hex(), source.manifest.image_bytes, await source.own_bytes())

    async def sharing(self, crid: Crid) -> Sharing:
        """Return what an image has in common with others."""
        return await self._references.sharing(crid)

    async def hurt_by(self, key: str) -> list[Crid]:
        """Return the images that an object hurts which was found damaged or missing; raises ArchiveUnavailable."""
        return [Crid(crid) for pack in numbered({key: 0}, "pack")
                for crid in await hurt_by(self._store, self._references, pack)]

    async def free_bytes(self) -> int | None:
        """Return how much it has room for, None if nobody knows."""
        return await self._store.free_bytes()

    async def size(self) -> ArchiveSize:
        """Return how much it holds, as far as that is known."""
        if not self.is_known:
            return ArchiveSize(await self._references.n_images(), 0)
        keys = await self._store.objects()
        return ArchiveSize(len(numbered(keys, "image")), sum(keys.values()))
