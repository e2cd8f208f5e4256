"""Image streams into the archive: cut, hashed and compressed on threads, stored in order, in bounded memory."""

from __future__ import annotations

import asyncio
import fcntl
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.archive import pack
from crd.archive.cutter import Batch, StreamCutter
from crd.archive.heads import Head
from crd.archive.manifest import NO_PACK, Manifest
from crd.archive.names import image_key, pack_key
from crd.archive.threads import in_thread, to_end
from crd.errors import ArchiveError
from crd.native.numbers import places_used, replace_places

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crd.archive.base import Base
    from crd.archive.heads import Heads
    from crd.archive.references import References
    from crd.archive.stores.store import Store, Upload
    from crd.ids import Crid
    from crd.native.pages import PageIndex

_F_SETPIPE_SZ, _PIPE_BYTES = 1031, 1 << 20


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
        image_bytes: of the image, which is larger if the stream leaves out what its base has.
    """

    def __init__(self, store: Store, references: References, upload: Upload, index: PageIndex, packs: Sequence[int], *,
                 base: Base | None, heads: Heads, level: int, threads: int) -> None:
        """Write an image; ``Archive.sink`` makes these.

        Args:
            store: for its objects.
            references: hold the packs for us.
            upload: for its pack.
            index: of the pages that there are.
            packs: whose numbers these pages have: first the one that the upload will be, then those that are there.
            base: the image whose pages the stream may leave out.
            heads: keep what is known of the image, for those that follow.
            level: of zstd.
            threads: that compress.
        """
        self._store = store
        self._references = references
        self._upload = upload
        self._index = index
        self._packs = packs
        self._base = base
        self._heads = heads
        self._level = level
        self._threads = threads
        self._entries = bytearray()
        self._hashes = bytearray()
        self._manifest: Manifest | None = None
        self._page_hashes = bytearray()
        self.received_bytes = self.image_bytes = 0
        self.stored_bytes = 0

    @property
    def follows(self) -> bool:
        """Whether the stream may leave out what is as in the base."""
        return self._base is not None

    async def drain(self, fd: int, progress: Callable[[int], None] | None = None) -> int:
        """Read a pipe to its end, which stays the caller's; return the bytes that came.

        Args:
            fd: the end to read.  Nothing reads it any more when this returns or raises, be it by a cancellation.
            progress: told the bytes so far, now and then.

        Raises:
            ArchiveFull, ArchiveUnavailable: they could not be stored, or read.
            ArchiveError: the image is larger than is kept.
        """
        with suppress(OSError):
            fcntl.fcntl(fd, _F_SETPIPE_SZ, _PIPE_BYTES)
        loop = asyncio.get_running_loop()
        batches: asyncio.Queue[Batch | None] = asyncio.Queue()
        cutter = StreamCutter(fd, self._index, lambda batch: loop.call_soon_threadsafe(batches.put_nowait, batch),
                              base=self._base, level=self._level, threads=self._threads)
        with ThreadPoolExecutor(self._threads, "crd-compress") as executor, closing(cutter):
            cutting = asyncio.gather(*(loop.run_in_executor(executor, cutter.work) for _ in range(self._threads)),
                                     return_exceptions=True)
            cutting.add_done_callback(lambda _: batches.put_nowait(None))
            try:
                while ready := await _all_of(batches):
                    await self._append(ready)
                    cutter.stored(len(ready))
                    if progress:
                        progress(cutter.image_bytes)
            finally:
                cutter.stop()
                errors = await to_end(cutting)
        for error in errors:
            if error:
                raise error
        self.received_bytes, self.image_bytes = cutter.received_bytes, cutter.image_bytes
        self._hashes, self._page_hashes = cutter.hashes, cutter.page_hashes
        self._manifest = await in_thread(_manifest, cutter, self._packs)
        return self.received_bytes

    async def _append(self, batches: list[Batch]) -> None:
        start = [] if self._entries else [pack.header(self._packs[0])]
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
        manifest, own = self._manifest, self._packs[0]
        if self._hashes:
            await self._write(pack.trailer(own, self._entries, self._hashes))
            await self._upload.commit()
        else:
            await self._upload.abort()
        try:
            await self._commit_manifest(image_key(crid), await in_thread(manifest.encode))
        except BaseException:
            await asyncio.shield(self._store.delete(pack_key(own)))
            raise
        self._references.enter(crid, manifest.packs)
        self._heads.put(crid, Head(manifest, self._page_hashes))
        return Stored(crid, self.digest, self.image_bytes, self.stored_bytes)

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
        await self._upload.abort()
        await self._references.release(self._packs)


async def _all_of(batches: asyncio.Queue[Batch | None]) -> list[Batch]:
    """Wait for batches, and return all that there are; none at the end."""
    ready = [await batches.get()]
    while not batches.empty():
        ready.append(batches.get_nowait())
    found = [batch for batch in ready if batch]
    if found and len(found) < len(ready):
        batches.put_nowait(None)
    return found


def _manifest(cutter: StreamCutter, packs: Sequence[int]) -> Manifest:
    """Return what was cut, with those packs only that it needs."""
    digest = cutter.finish()
    own = packs[0] if cutter.hashes else NO_PACK
    used = [place for place in places_used(cutter.pages, len(packs)) if place]
    if used != list(range(1, len(used) + 1)):
        places = [0] * len(packs)
        for new, old in enumerate(used, 1):
            places[old] = new
        replace_places(cutter.pages, places)
    return Manifest(cutter.image_bytes, digest, [own, *(packs[place] for place in used)], cutter.pieces, cutter.pages,
                    bytes(cutter.literals))
