"""Image streams into the archive: cut, hashed and compressed on threads, stored in order, in bounded memory."""

from __future__ import annotations

import asyncio
from array import array
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.archive import pack
from crd.archive.cutter import Batch, StreamCutter
from crd.archive.manifest import NO_PACK, PACK_SHIFT, Manifest, digest_of, pages_by_pack
from crd.archive.names import image_key, pack_key
from crd.archive.threads import in_thread, to_end
from crd.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Callable

    from crd.archive.base import Known
    from crd.archive.cutter import Cut
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
    """One image on its way into the store."""

    def __init__(self, store: Store, references: References, upload: Upload, known: Known, *, level: int,
                 threads: int) -> None:
        """Write an image; ``Archive.sink`` makes these.

        Args:
            store: for its objects.
            references: hold the packs of ``known`` for us.
            upload: for its pack.
            known: the pages that there are.
            level: of zstd.
            threads: that compress.
        """
        self._store = store
        self._references = references
        self._upload = upload
        self._known = known
        self._level = level
        self._threads = threads
        self._entries = bytearray()
        self._hashes = bytearray()
        self._manifest: Manifest | None = None
        self.image_bytes = 0
        self.stored_bytes = 0

    async def drain(self, fd: int, progress: Callable[[int], None] | None = None) -> int:
        """Read a pipe to its end, which stays the caller's; return the bytes.

        Args:
            fd: the end to read.  Nothing reads it any more when this returns or raises, be it by a cancellation.
            progress: told the bytes so far, now and then.

        Raises:
            ArchiveFull, ArchiveUnavailable: they could not be stored, or read.
            ArchiveError: the image is larger than is kept.
        """
        loop = asyncio.get_running_loop()
        batches: asyncio.Queue[list[Batch]] = asyncio.Queue()
        cutter = StreamCutter(fd, self._known.index, lambda some: loop.call_soon_threadsafe(batches.put_nowait, some),
                              level=self._level, threads=self._threads)
        with ThreadPoolExecutor(self._threads, "crd-compress") as executor, closing(cutter):
            cutting = asyncio.gather(*(loop.run_in_executor(executor, cutter.work) for _ in range(self._threads)),
                                     return_exceptions=True)
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
        self.image_bytes = cutter.cut.image_bytes
        self._manifest = await in_thread(self._made, cutter.cut)
        return self.image_bytes

    def _made(self, cut: Cut) -> Manifest:
        cut.end()
        self._hashes = cut.hashes
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
        manifest, own = self._manifest, self._known.packs[0]
        if digest := self._known.digests[0]:
            await self._write(pack.trailer(digest, self._entries, self._hashes))
            await self._upload.commit(pack_key(own))
        else:
            await self._upload.abort()
        try:
            await self._commit_manifest(image_key(crid), await in_thread(manifest.encode))
        except BaseException:
            await asyncio.shield(self._store.delete(pack_key(own)))
            raise
        self._references.enter(crid, manifest.packs)
        return Stored(crid, self.digest, self.image_bytes, self.stored_bytes)

    async def _commit_manifest(self, key: str, parts: list[bytes]) -> None:
        upload = await self._store.create()
        try:
            await upload.write(parts)
            await upload.commit(key)
        except BaseException:
            await asyncio.shield(upload.abort())
            raise
        self.stored_bytes += sum(map(len, parts))

    async def abort(self) -> None:
        """Leave nothing; after ``commit`` only let go of the packs that were held for it."""
        await self._upload.abort()
        await self._references.release(self._known.packs)


def _manifest(cut: Cut, known: Known) -> Manifest:
    """Return what a stream was cut into, with those packs only that it needs."""
    counts = pages_by_pack(cut.pages, len(known.packs))
    used = [place for place, n in enumerate(counts) if n and place]
    pages = cut.pages
    if used != list(range(1, len(used) + 1)):
        shift = {old: (new - old) << PACK_SHIFT for new, old in enumerate([0, *used])}
        pages = array("Q", (number + shift[number >> PACK_SHIFT] for number in pages))
    packs = [(known.packs[0] if cut.hashes else NO_PACK, counts[0]),
             *((known.packs[place], counts[place]) for place in used)]
    digest = digest_of((known.digests[place] for place in [0, *used]), cut.pieces, pages, cut.literals)
    return Manifest(cut.image_bytes, digest, packs, cut.pieces, pages, bytes(cut.literals))
