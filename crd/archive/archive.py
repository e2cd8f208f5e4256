"""The archive: images by crid, over a store."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.archive.sink import ImageSink, Stored, key_of
from crd.archive.source import ImageSource, open_source
from crd.ids import Crid

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from crd.archive.stores.store import Store

_KEY = re.compile(r"([0-9a-f]{16})\.image")


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
            threads: that compress, or decompress, one image.
        """
        self._store = store
        self._level = level
        self._threads = threads

    async def __aenter__(self) -> Self:
        await self._store.clear_torn()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        """Nothing is held open."""

    def describe(self) -> str:
        """Return where the store is."""
        return self._store.describe()

    async def sink(self) -> ImageSink:
        """Begin an image; ``commit`` or ``abort`` it.

        Raises:
            ArchiveFull, ArchiveUnavailable: there is no room for it.
        """
        return ImageSink(await self._store.create(), level=self._level, threads=self._threads)

    async def source(self, crid: Crid) -> ImageSource:
        """Open an image; raises as ``open_source``."""
        return await open_source(self._store, key_of(crid), threads=self._threads)

    async def forget(self, crid: Crid) -> None:
        """Remove an image durably; nothing if there is none."""
        await self._store.delete(key_of(crid))

    async def crids(self) -> list[Crid]:
        """Return the images that are there whole, in ascending order."""
        return list(await self._images())

    async def _images(self) -> dict[Crid, int]:
        return {Crid(int(found[1], 16)): stored_bytes for key, stored_bytes in (await self._store.objects()).items()
                if (found := _KEY.fullmatch(key))}

    async def stored(self, crid: Crid) -> Stored:
        """Return what is known of an image from its object alone; raises as ``open_source``."""
        key = key_of(crid)
        source = await open_source(self._store, key, threads=self._threads)
        return Stored(crid, source.table.digest.hex(), source.table.image_bytes, await self._store.size(key))

    async def size(self) -> ArchiveSize:
        """Return how much it holds."""
        images = await self._images()
        return ArchiveSize(len(images), sum(images.values()))
