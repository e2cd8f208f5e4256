"""Image streams into the archive: cut, hashed and compressed on threads, stored in order, in bounded memory."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.archive import pack
from crd.archive.cutter import Batch, StreamCutter
from crd.archive.heads import Head
from crd.archive.manifest import NO_PACK, Manifest, digest_of
from crd.archive.names import image_key, pack_key
from crd.archive.threads import in_thread, to_end
from crd.errors import ArchiveError
from crd.native.numbers import pages_by_place, replace_places
from crd.native.pages import HASH_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from crd.archive.base import Known
    from crd.archive.cutter import Cut
    from crd.archive.heads import Heads
    from crd.archive.references import References
    from crd.archive.stores.store import Store, Upload
    from crd.ids import Crid


@dataclass(frozen=True, slots=True)
class Stored:
    """An image that is durable.

    Attributes:
        crid: its identifier.
        digest: see ``crd.archive.manifest``, in hexadecimal.
        image_bytes: of the stream.
        stored_bytes: of the objects that it brought.
    """

    crid: Crid
    digest: str
    image_bytes: int
    stored_bytes: int


class ImageSink:
    """One image on its way into the store.

    Attributes:
        received_bytes: of the stream.
        image_bytes: of the image, which has more if the stream left out what is as in the one it follows.
        front: the first bytes of the stream, enough to tell the header.
    """

    def __init__(self, store: Store, references: References, upload: Upload, known: Known, heads: Heads,
                 executor: Executor, *, level: int, threads: int) -> None:
        """Write an image; ``Archive.sink`` makes these.

        Args:
            store: for its objects.
            references: hold the packs of ``known`` for us.
            upload: for its pack.
            known: the pages that there are.
            heads: remember the image, for those that follow it.
            executor: runs the threads that compress.
            level: of zstd.
            threads: that compress.
        """
        self._store = store
        self._references = references
        self._upload = upload
        self._known = known
        self._heads = heads
        self._executor = executor
        self._level = level
        self._threads = threads
        self._entries = bytearray()
        self._hashes = bytearray()
        self._page_hashes = bytearray()
        self._manifest: Manifest | None = None
        self.received_bytes = self.image_bytes = 0
        self.front = b""
        self.stored_bytes = 0

    @property
    def follows(self) -> bool:
        """Whether the stream may leave out what is as in the base."""
        return self._known.followed is not None

    async def drain(self, fd: int, progress: Callable[[int], None] | None = None) -> int:
        """Read a pipe to its end, which stays the caller's; return the bytes that came.

        Args:
            fd: the end to read.  Nothing reads it any more when this returns or raises, be it by a cancellation.
            progress: told the bytes so far, now and then.

        Raises:
            ArchiveFull, ArchiveUnavailable: they could not be stored, or read.
            ArchiveError: the image is larger than is kept.
        """
        loop = asyncio.get_running_loop()
        batches: asyncio.Queue[list[Batch]] = asyncio.Queue()
        cutter = StreamCutter(fd, self._known, lambda some: loop.call_soon_threadsafe(batches.put_nowait, some),
                              level=self._level, threads=self._threads)
        with closing(cutter):
            cutting = asyncio.gather(*(loop.run_in_executor(self._executor, cutter.work)
                                       for _ in range(cutter.workers)), return_exceptions=True)
            cutting.add_done_callback(lambda _: batches.put_nowait([]))
            try:
                while ready := await batches.get():
                    await self._append(ready)
                    cutter.stored(len(ready))
                    if progress:
                        progress(cutter.cut.image_bytes)
            finally:
                cutter.stop()
                errors = await to_end(cutting)
        for error in errors:
            if error:
                raise error
        self.received_bytes, self.image_bytes = cutter.received_bytes, cutter.cut.image_bytes
        self.front = cutter.front
        self._manifest = await in_thread(self._made, cutter.cut)
        return self.received_bytes

    def _made(self, cut: Cut) -> Manifest:
        cut.end()
        self._hashes, self._page_hashes = cut.hashes, cut.page_hashes
        self._known.sizes[0] = len(cut.hashes) // HASH_BYTES
        if cut.hashes:
            self._known.digests[0] = pack.digest_of(self._header, self._entries, self._hashes)
        return _manifest(cut, self._known)

    @property
    def _header(self) -> bytes:
        return pack.header(self._known.packs[0], self._known.index.key)

    async def _append(self, batches: list[Batch]) -> None:
        start = [] if self._entries else [self._header]
        await self._write([*start, *(block for batch in batches for block in batch.blocks)])
        self._entries += b"".join(batch.entries for batch in batches)

    async def _write(self, parts: list[bytes]) -> None:
        await self._upload.write(parts)
        self.stored_bytes += sum(map(len, parts))

    @property
    def digest(self) -> str:
        """The digest of what was drained, in hexadecimal."""
        assert self._manifest  # noqa: S101
        return self._manifest.digest.hex()

    async def commit(self, crid: Crid) -> Stored:
        """Make the image durable, and then visible.  If this raises, be it by a cancellation, it is not there.

        Raises:
            ArchiveError: nothing was drained, or the crid is taken.
            ArchiveFull, ArchiveUnavailable: it could not be stored.
        """
        if not self._manifest or not self.image_bytes:
            raise ArchiveError("the image is empty")
        manifest = self._manifest
        await self._references.enter(crid, manifest.packs)
        try:
            await self._commit_pack()
            await self._commit_manifest(image_key(crid), await in_thread(manifest.encode))
        except BaseException:
            await asyncio.shield(self._take_back(crid))
            raise
        self._remember(crid, manifest)
        return Stored(crid, self.digest, self.image_bytes, self.stored_bytes)

    async def _take_back(self, crid: Crid) -> None:
        try:
            await self._store.delete(pack_key(self._known.packs[0]))
        finally:
            await self._references.forget(crid)

    async def _commit_pack(self) -> None:
        if digest := self._known.digests[0]:
            await self._write(pack.trailer(digest, self._entries, self._hashes))
            await self._upload.commit()
        else:
            await self._upload.abort()

    def _remember(self, crid: Crid, manifest: Manifest) -> None:
        known = self._known
        if len(self._page_hashes) == len(manifest.pages) * HASH_BYTES:
            place = {number: place for place, number in enumerate(known.packs)}
            places = [place[number] if number != NO_PACK else 0 for number, _ in manifest.packs]
            self._heads.put(crid, Head(manifest, known.index.key, self._page_hashes,
                                       [known.digests[place] for place in places],
                                       [known.sizes[place] for place in places]))

    async def _commit_manifest(self, key: str, parts: list[bytes]) -> None:
        upload = await self._store.create(key)
        try:
            await upload.write(parts)
            await upload.commit()
        except BaseException:
            await asyncio.shield(upload.abort())
            raise
        self.stored_bytes += sum(map(len, parts))

    async def abort(self) -> None:
        """Leave nothing; after ``commit`` only let go of the packs that were held for it."""
        try:
            await self._upload.abort()
        finally:
            await self._references.release(self._known.packs)


def _manifest(cut: Cut, known: Known) -> Manifest:
    """Return what a stream was cut into, with those packs only that it needs."""
    counts = pages_by_place(cut.pages, len(known.packs))
    used = [place for place, n in enumerate(counts) if n and place]
    pages = cut.pages
    if used != list(range(1, len(used) + 1)):
        places = [0] * len(known.packs)
        for new, old in enumerate(used, 1):
            places[old] = new
        replace_places(pages, places)
    packs = [(known.packs[0] if cut.hashes else NO_PACK, counts[0]),
             *((known.packs[place], counts[place]) for place in used)]
    digest = digest_of((known.digests[place] for place in [0, *used]), cut.pieces, pages, cut.literals)
    return Manifest(cut.image_bytes, digest, packs, cut.pieces, pages, bytes(cut.literals))
