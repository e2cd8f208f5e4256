"""The archive: images by crid, over a store."""

from __future__ import annotations

import asyncio
import logging
import secrets
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.archive.heads import Heads
from crd.archive.manifest import PACK_SHIFT
from crd.archive.names import image_key, numbered, pack_key
from crd.archive.references import References
from crd.archive.sink import ImageSink, Stored
from crd.archive.source import ImageSource, open_pack, open_source
from crd.archive.threads import in_thread
from crd.errors import ArchiveError, ArchiveUnavailable, BlobCorrupt, BlobMissing
from crd.ids import Crid
from crd.native.pages import PageIndex

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from crd.archive.base import Base
    from crd.archive.pack import PackTable
    from crd.archive.stores.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ArchiveSize:
    """What the archive holds: images, and the bytes of all objects."""

    images: int
    stored_bytes: int


class Archive:
    """Keeps image streams.  An async context manager."""

    def __init__(self, store: Store, *, level: int = 1, threads: int = 2) -> None:
        """Keep images in a store.

        Args:
            store: where.
            level: of zstd, 1 to 19.
            threads: that compress, or decompress, one image.
        """
        self._store = store
        self._level = level
        self._threads = threads
        self._references = References(store)
        self._heads = Heads()

    async def __aenter__(self) -> Self:
        await self._store.clear_torn()
        await self._references.load()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        """Nothing is held open."""

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
        packs = [secrets.randbits(63) | 1, *(self._references.sound(base) if base is not None else ())]
        self._references.hold(packs)
        try:
            followed = await self._base(base, packs) if follow and base is not None else None
            index = await (in_thread(_index_of, followed) if followed else self._index(packs))
            return ImageSink(self._store, self._references, await self._store.create(pack_key(packs[0])), index, packs,
                             base=followed, heads=self._heads, level=self._level, threads=self._threads)
        except BaseException:
            await asyncio.shield(self._references.release(packs))
            raise

    async def _base(self, crid: Crid, packs: list[int]) -> Base | None:
        """Return an image that another with these packs can follow; None if it cannot, or is not whole."""
        head = self._heads.get(crid)
        if head is None:
            try:
                for number in packs[1:]:
                    if not await self._store.is_current(pack_key(number)):
                        return None
                head = await (await self.source(crid)).head()
            except (BlobCorrupt, BlobMissing, ArchiveUnavailable):
                return None
        try:
            return await in_thread(head.base, packs)
        except ArchiveError:
            return None

    async def _index(self, packs: list[int]) -> PageIndex:
        """Return an index of all pages that packs have, but for the first, which is to be made.

        An image shall not need a key that is to go out of use, so packs that are not kept as new ones do not count.
        """
        index = PageIndex()
        for place, number in list(enumerate(packs))[1:]:
            try:
                if await self._store.is_current(pack_key(number)):
                    await in_thread(_learn, index, await open_pack(self._store, number), place << PACK_SHIFT)
            except (BlobCorrupt, BlobMissing):
                self._references.distrust(number)  # what is in it is stored again
            except ArchiveUnavailable as error:  # likewise: a spool may take in what the store behind it cannot compare
                logger.info("pages of pack %016x are stored again: %s", number, error.message,
                            extra={"event": "archive.not-shared"})
        return index

    async def source(self, crid: Crid) -> ImageSource:
        """Open an image; raises as ``open_source``."""
        return await open_source(self._store, self._references, crid, threads=self._threads)

    async def forget(self, crid: Crid) -> None:
        """Remove an image durably, and what no other needs; nothing if there is none."""
        self._heads.drop(crid)
        await self._store.delete(image_key(crid))
        await self._references.forget(crid)

    async def crids(self) -> list[Crid]:
        """Return the images that are there whole, in ascending order."""
        return [Crid(crid) for crid in numbered(await self._store.objects(), "image")]

    async def stored(self, crid: Crid) -> Stored:
        """Return what is known of an image from its objects alone; raises as ``open_source``."""
        source = await open_source(self._store, self._references, crid, threads=self._threads)
        return Stored(crid, source.manifest.digest.hex(), source.manifest.image_bytes, await source.own_bytes())

    async def size(self) -> ArchiveSize:
        """Return how much it holds."""
        keys = await self._store.objects()
        return ArchiveSize(len(numbered(keys, "image")), sum(keys.values()))


def _index_of(base: Base) -> PageIndex:
    index = PageIndex()
    index.learn(base.hashes, base.numbers)
    return index


def _learn(index: PageIndex, table: PackTable, first_number: int) -> None:
    index.learn(table.hashes, array("Q", range(first_number, first_number + table.pages)))
