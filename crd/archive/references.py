"""Which images need which packs: a pack is deleted with the last image that needs it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from crd.archive.manifest import HEAD, NO_PACK, needs, parse_head
from crd.archive.names import image_key, numbered, pack_key, token_key
from crd.archive.needs import Needs
from crd.archive.threads import in_thread, to_end
from crd.errors import BlobCorrupt, BlobMissing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from crd.archive.manifest import Need
    from crd.archive.stores.store import Store
    from crd.reserve import Reserve

logger = logging.getLogger(__name__)

T = TypeVar("T")

_READ_AT_ONCE = 16
_ENTERED_AT_ONCE = 100


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
    """Knows who needs a pack: images, which are in a file (``crd.archive.needs``), and checkpoints that are under way.

    An image is entered before anything of it can be seen, and leaves after its last object: a daemon that is killed
    leaves too much in the file and nothing too little.  As long as an image cannot be read, no one knows what it needs,
    and no pack is deleted.
    """

    def __init__(self, store: Store, path: Path | None = None, *, away: bool = False,
                 reserve: Reserve | None = None) -> None:
        """Know what the file says; ``load``, later if the store is away.

        Args:
            store: of the images.
            path: of the file; None: all is found out anew from the store each time.
            away: the store cannot be read yet.
            reserve: as of ``Needs``.

        Raises:
            ArchiveFull, ArchiveUnavailable: the file cannot be made.
        """
        self._store = store
        self._needs = Needs(path, reserve)
        self._held: Counter[int] = Counter()
        self._dying: Counter[int] = Counter()  # packs that are about to be deleted, if nobody needs them
        self._unreadable: set[int] = set()
        self._distrusted: set[int] = set()
        self._since: set[int] = set()  # images that were entered, or have left, before all was known
        self._leaving: set[int] = set()  # forgotten, and still in the file
        self._damaged = False
        self.are_known = not away

    def close(self) -> None:
        """Close the file."""
        self._needs.close()

    async def load(self) -> None:
        """Bring the file together with the store, and remove packs that no image needs: a commit was cut off.

        Of a store that was away no pack is deleted until this is done; images may be entered before, and meanwhile.

        Raises:
            ArchiveFull, ArchiveUnavailable: the store cannot be read, or the file not be written.
        """
        keys = await self._store.objects()
        images, packs, tokens = (numbered(keys, kind) for kind in ("image", "pack", "token"))
        vouched = await in_thread(lambda: self._needs.token) in tokens
        if not vouched:
            await self._begin_anew()
        await self._agree(images)
        unknown = await in_thread(self._needs.unknown, packs)
        if vouched and (self._damaged or (unknown and not self._unreadable)):
            logger.warning("what is known of %s is not all: its images are read anew", self._store.describe(),
                           extra={"event": "archive.read-anew"})
            vouched = False
            await self._begin_anew()
            await self._agree(images)
            unknown = await in_thread(self._needs.unknown, packs)
        self.are_known = True
        self._since.clear()
        await self._remove(await in_thread(self._needs.dead))
        if not vouched and not self._unreadable:
            await self._delete(pack for pack in unknown if not self._held[pack])
            await self._vouch(tokens)

    async def _begin_anew(self) -> None:
        self._damaged = False
        await in_thread(self._needs.begin_anew, self._since)

    async def _vouch(self, tokens: Iterable[int]) -> None:
        """Note, here and in the store, that the file is the truth of it."""
        if not self._needs.is_kept:
            return
        token = secrets.randbits(62) + 1
        await (await self._store.create(token_key(token))).commit()
        await in_thread(self._needs.vouch, token)
        for other in tokens:
            await self._store.delete(token_key(other))

    async def _agree(self, images: Iterable[int]) -> None:
        """Read what each image of the store needs that is not known, and forget of those that are not there."""
        unread, gone = await in_thread(self._needs.differences, images)
        for crid in gone:
            if crid not in self._since:
                await self._doubting(partial(self._needs.leave, crid))
        left = (crid for crid in unread if crid not in self._since)
        readers = [asyncio.create_task(self._enter_all(left)) for _ in range(_READ_AT_ONCE)]  # it may be far away
        try:
            await asyncio.gather(*readers)
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    async def _enter_all(self, unread: Iterator[int]) -> None:
        found: list[tuple[int, list[Need]]] = []
        for crid in unread:
            try:
                found.append((crid, await self._needed(crid)))
            except (BlobCorrupt, BlobMissing) as error:
                if crid in self._since:  # it was forgotten meanwhile
                    continue
                self._unreadable.add(crid)
                logger.warning("image %d cannot be read, so no pack will be removed until it is forgotten: %s", crid,
                               error.message, extra={"event": "archive.unreadable", "crid": crid})
            if len(found) == _ENTERED_AT_ONCE:
                await in_thread(self._needs.enter, found)
                found = []
        await in_thread(self._needs.enter, found)

    async def _needed(self, crid: int) -> list[Need]:
        key = image_key(crid)
        head = parse_head(await self._store.read(key, 0, HEAD.size))
        return await in_thread(needs, await self._store.read(key, 0, head.object_bytes))

    async def sound(self, crid: int) -> list[Need]:
        """Return what an image needs, without packs that were found damaged; nothing if it is unknown.

        What is returned is not deleted if it is held before anything else is awaited.
        """
        needs = await self._doubting(partial(self._needs.of, crid)) or []
        return [need for need in needs if need[0] not in self._distrusted and not self._dying[need[0]]]

    async def n_images(self) -> int:
        """Return how many images are known."""
        return await in_thread(self._needs.n_images)

    async def sharing(self, crid: int) -> Sharing:
        """Return what an image has in common with others."""
        found = await self._doubting(partial(self._needs.shared, crid)) or []
        shared, own = ([pages for pages, by_others in found if by_others is which] for which in (True, False))
        return Sharing(sum(own), len(own), sum(shared), len(shared))

    async def needing(self, pack: int) -> list[int]:
        """Return the images that need a pack, in ascending order; for once all are looked at."""
        return await self._doubting(partial(self._needs.needing, pack)) or []

    def distrust(self, pack: int) -> None:
        """Take note that a pack is damaged or missing: no new image shall need it."""
        self._distrusted.add(pack)

    def hold(self, packs: Iterable[int]) -> None:
        """Keep packs until they are released."""
        self._held.update(packs)

    async def release(self, packs: Iterable[int]) -> None:
        """Undo a ``hold``; what nobody needs any more is deleted."""
        packs = list(packs)
        self._held.subtract(packs)
        self._held += Counter()  # only what is held
        await self._remove(packs)

    async def enter(self, crid: int, packs: Iterable[Need]) -> None:
        """Take note of an image that is about to be there; its packs are held.  If this raises, nothing is noted.

        Raises:
            ArchiveError: there is one of that crid.
            ArchiveFull, ArchiveUnavailable: it cannot be noted.
        """
        if not self.are_known:
            self._since.add(crid)
        needed = [need for need in packs if need[0] != NO_PACK]
        entering = asyncio.ensure_future(in_thread(self._needs.enter, [(crid, needed)]))
        try:
            await to_end(entering)
        except asyncio.CancelledError:
            if not entering.exception():
                await asyncio.shield(self.forget(crid))
            raise

    async def forget(self, crid: int) -> list[int]:
        """Take note that an image is gone from the store; delete, and return, the packs that only it needed."""
        if not self.are_known:
            self._since.add(crid)
        packs = {pack for pack, _ in await self._doubting(partial(self._needs.of, crid)) or []}
        self._leaving.add(crid)
        gone = await self._remove(packs, but_for=crid)  # first: there may be no room to note anything
        await self._leave()
        await in_thread(self._needs.bury, gone)
        gone += await self._remove(packs.difference(gone))  # those that were held a moment ago
        self._unreadable.discard(crid)
        return gone

    async def _leave(self) -> None:
        """Know nothing any more of images that are gone: there was no room, perhaps, when they went."""
        for left in [*self._leaving]:
            await self._doubting(partial(self._needs.leave, left))
            self._leaving.discard(left)

    async def may_sweep(self) -> bool:
        """Whether there may be anything to sweep."""
        return bool(self._leaving) or bool(await in_thread(self._needs.dead))

    async def sweep(self) -> list[int]:
        """Delete, and return, packs that no image needs and that could not be deleted when that came to be."""
        await self._leave()
        return await self._remove(await in_thread(self._needs.dead))

    @property
    def hindrance(self) -> str:
        """Why no pack is deleted, whoever needs it; empty: nothing keeps us from it."""
        if not self.are_known:
            return f"{self._store.describe()} has not been read yet"
        if self._unreadable:
            return f"image {min(self._unreadable)} cannot be read, and may need any of them until it is forgotten"
        return "what images need is known only after the next start" if self._damaged else ""

    async def _remove(self, packs: Iterable[int], but_for: int | None = None) -> list[int]:
        """Delete, and return, those packs that no image needs, or none but that one; nobody holds them from now on."""
        dying = [pack for pack in packs if not self._held[pack]]
        if not dying or not self.are_known or self._unreadable or self._damaged:
            return []
        self._dying.update(dying)
        try:
            dead = await in_thread(self._needs.unneeded, dying, but_for)
            if dead:
                await self._delete(dead)
                await in_thread(self._needs.bury, dead)
        finally:
            self._dying.subtract(dying)
            self._dying += Counter()
        return dead

    async def _delete(self, packs: Iterable[int]) -> None:
        for pack in packs:
            await self._store.delete(pack_key(pack))
            self._distrusted.discard(pack)

    async def _doubting(self, ask: Callable[[], T]) -> T | None:
        """Ask the file; if it turns out to be damaged, delete nothing any more: the next start makes it anew."""
        try:
            return await in_thread(ask)
        except BlobCorrupt as error:
            await self._give_up(error)
            return None

    async def _give_up(self, error: BlobCorrupt) -> None:
        self._damaged = True
        logger.error("no pack will be removed until the next start: %s", error.message,
                     extra={"event": "archive.unknown-needs"})
        await in_thread(self._needs.vouch, None)
