"""The archive: images by crid, over a store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.archive.sink import ImageSink, Stored, key_of
from crd.archive.source import ImageSource, open_source
from crd.ids import Crid

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from crd.archive.stores.store import Store

_SUFFIX = ".image"


@dataclass(frozen=True, slots=True)
class ArchiveSize:
    """What the archive holds."""

    images: int
    stored_bytes: int


class Archive:
    """Keeps image streams.  An async context manager."""

    def __init__(self, store: Store, *, level: int = 1, threads: int = 2) -> None:
        """Keep images in a store.

        Args:
            store: where.
            level: of zstd, 1 to 19.
            threads: that compress at once.
        """
        self._store = store
        self._level = level
        self._threads = threads
        self._executor = ThreadPoolExecutor(threads, "crd-compress")

    async def __aenter__(self) -> Self:
        await self._store.clear_torn()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def describe(self) -> str:
        """Return where the store is."""
        return self._store.describe()

    async def sink(self) -> ImageSink:
        """Begin an image; ``commit`` or ``abort`` it.

        Raises:
            ArchiveFull, ArchiveUnavailable: there is no room for it.
        """
        return ImageSink(await self._store.create(), self._executor, self._threads, self._level)

    async def source(self, crid: Crid) -> ImageSource:
        """Open an image; raises as ``open_source``."""
        return await open_source(self._store, key_of(crid))

    async def forget(self, crid: Crid) -> None:
        """Remove an image durably; nothing if there is none."""
        await self._store.delete(key_of(crid))

    async def crids(self) -> list[Crid]:
        """Return the images that are there whole, in ascending order."""
        found = []
        for key in await self._store.keys():
            stem = key.removesuffix(_SUFFIX)
            if key.endswith(_SUFFIX) and len(stem) == 16 and set(stem) <= set("0123456789abcdef"):
                found.append(Crid(int(stem, 16)))
        return found

    async def stored(self, crid: Crid) -> Stored:
        """Return what is known of an image from its object alone; raises as ``open_source``."""
        key = key_of(crid)
        source = await open_source(self._store, key)
        return Stored(crid, source.table.digest.hex(), source.table.image_bytes, await self._store.size(key))

    async def size(self) -> ArchiveSize:
        """Return how much it holds."""
        crids = await self.crids()
        return ArchiveSize(len(crids), sum([await self._store.size(key_of(crid)) for crid in crids]))


