"""Which images need which packs: a pack is deleted with the last image that needs it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.archive.manifest import HEAD, NEED, NO_PACK, parse_head
from crd.archive.names import image_key, numbered, pack_key
from crd.errors import BlobCorrupt, BlobMissing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from crd.archive.manifest import Need
    from crd.archive.stores.store import Store

logger = logging.getLogger(__name__)

_USUAL_PACKS = 64
_READ_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Sharing:
    """What an image has in common with others.

    Attributes:
        own_pages: that lie in packs which only it needs, and go with it.
        own_packs: how many such packs there are.
        shared_pages: that lie in packs which others need, too.
        shared_packs: how many such packs there are.
    """

    own_pages: int = 0
    own_packs: int = 0
    shared_pages: int = 0
    shared_packs: int = 0


class References:
    """Counts who needs a pack: images, and checkpoints that are under way.

    It is made anew from the store at each start, so nothing that was lost with a daemon can mislead it.  As long as an
    image cannot be read, no one knows what it needs, and no pack is deleted.
    """

    def __init__(self, store: Store, *, away: bool = False) -> None:
        """Know of no image; ``load``, later if the store is away."""
        self._store = store
        self._images: dict[int, list[Need]] = {}
        self._counts: Counter[int] = Counter()
        self._unreadable: set[int] = set()
        self._distrusted: set[int] = set()
        self.are_known = not away

    async def load(self) -> None:
        """Read what each image of the store needs, and remove packs that none does: a commit was cut off.

        Of a store that was away no pack is deleted until this is done; images may be entered before, and meanwhile.

        Raises:
            ArchiveUnavailable: the store cannot be read.
        """
        keys = await self._store.objects()
        unread = (crid for crid in numbered(keys, "image") if crid not in self._images)
        readers = [asyncio.create_task(self._enter_all(unread)) for _ in range(_READ_AT_ONCE)]  # it may be far away
        try:
            await asyncio.gather(*readers)
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
        self.are_known = True
        await self._remove(numbered(keys, "pack"))

    async def _enter_all(self, unread: Iterator[int]) -> None:
        for crid in unread:
            try:
                needs = await self._needed(crid)
                if crid not in self._images:
                    self.enter(crid, needs)
            except (BlobCorrupt, BlobMissing) as error:
                self._unreadable.add(crid)
                logger.warning("image %d cannot be read, so no pack will be removed until it is forgotten: %s", crid,
                               error.message, extra={"event": "archive.unreadable", "crid": crid})

    async def _needed(self, crid: int) -> list[Need]:
        key = image_key(crid)
        start = await self._store.read(key, 0, HEAD.size + NEED.size * _USUAL_PACKS)
        head = parse_head(start)
        return head.packs(start if head.n_packs <= _USUAL_PACKS else await self._store.read(key, 0, head.packs_end))

    def sound(self, crid: int) -> list[Need]:
        """Return what an image needs, without packs that were found damaged; nothing if it is unknown."""
        return [need for need in self._images.get(crid, ()) if need[0] not in self._distrusted]

    @property
    def n_images(self) -> int:
        """How many images are known."""
        return len(self._images)

    def sharing(self, crid: int) -> Sharing:
        """Return what an image has in common with others, and with checkpoints that are under way."""
        shared = [pages for pack, pages in self._images.get(crid, ()) if self._counts[pack] > 1]
        own = [pages for pack, pages in self._images.get(crid, ()) if self._counts[pack] == 1]
        return Sharing(sum(own), len(own), sum(shared), len(shared))

    def distrust(self, pack: int) -> None:
        """Take note that a pack is damaged or missing: no new image shall need it."""
        self._distrusted.add(pack)

    def hold(self, packs: Iterable[int]) -> None:
        """Keep packs until they are released."""
        self._counts.update(packs)

    async def release(self, packs: Iterable[int]) -> None:
        """Undo a ``hold``; what nobody needs any more is deleted."""
        packs = list(packs)
        self._counts.subtract(packs)
        await self._remove(packs)

    def enter(self, crid: int, packs: Iterable[Need]) -> None:
        """Take note of an image that is there."""
        self._images[crid] = [need for need in packs if need[0] != NO_PACK]
        self.hold(pack for pack, _ in self._images[crid])

    async def forget(self, crid: int) -> None:
        """Take note that an image is gone from the store; what only it needed is deleted."""
        self._unreadable.discard(crid)
        await self.release([pack for pack, _ in self._images.pop(crid, ())])

    async def _remove(self, packs: Iterable[int]) -> None:
        for pack in packs:
            if self._counts[pack] <= 0:
                del self._counts[pack]
                if self.are_known and not self._unreadable:
                    await self._store.delete(pack_key(pack))
