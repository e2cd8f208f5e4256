"""Images out of the archive: checked before the first task is made, and again as they flow."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

import zstandard
from blake3 import blake3

from crd.archive.layout import (
    ENTRY,
    FRAME_BYTES,
    HEADER,
    TRAILER,
    Frame,
    Table,
    checksum,
    parse_table,
    parse_trailer,
)
from crd.errors import ArchiveError, BlobCorrupt, ImageSinkClosed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from crd.archive.stores.store import Store

_READ_BYTES = 4 << 20
_TABLE_BYTES_MAX = 1 << 30


class ImageSource:
    """A stored image: ``table`` says what it is made of."""

    def __init__(self, store: Store, key: str, table: Table) -> None:
        """Read an object; ``open_source`` makes these."""
        self._store = store
        self._key = key
        self.table = table

    async def verify(self, digest: str) -> None:
        """Read everything that is stored, and check every byte of it; nothing is decompressed.

        Args:
            digest: that the image must have, in hexadecimal.

        Raises:
            BlobCorrupt: it is damaged, or another image.
            BlobMissing, ArchiveUnavailable: it cannot be read.
        """
        if self.table.digest.hex() != digest:
            raise BlobCorrupt(f"{self._key} holds another image than the catalog says", key=self._key)
        async for _frame, _stored in self._frames():
            pass

    async def pump(self, fd: int) -> None:
        """Write the stream to a descriptor, which stays the caller's.

        Raises:
            BlobCorrupt: it is damaged: what was written so far is no image.
            ImageSinkClosed: nobody reads it.
            ArchiveError: it cannot be written.
        """
        digest = blake3()
        decompressor = zstandard.ZstdDecompressor()
        async for frame, stored in self._frames():
            await asyncio.to_thread(self._write_frame, fd, decompressor, frame, stored, digest)
        if digest.digest() != self.table.digest:
            raise BlobCorrupt(f"the stream of {self._key} does not have its digest", key=self._key)

    def _write_frame(self, fd: int, decompressor: zstandard.ZstdDecompressor, frame: Frame, stored: memoryview,
                     digest: blake3) -> None:
        try:
            raw = decompressor.decompress(stored, max_output_size=FRAME_BYTES)
        except zstandard.ZstdError as error:
            raise BlobCorrupt(f"{self._key} at {frame.offset}: {error}", key=self._key) from error
        if len(raw) != frame.raw_bytes:
            raise BlobCorrupt(f"{self._key} at {frame.offset}: {len(raw)} bytes", key=self._key)
        digest.update(raw)
        view = memoryview(raw)
        try:
            while view:
                view = view[os.write(fd, view):]
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise ImageSinkClosed from error
            raise ArchiveError(f"writing the image: {error.strerror}") from error

    async def _frames(self) -> AsyncIterator[tuple[Frame, memoryview]]:
        """Read the frames in order, several a read, each checked."""
        frames = self.table.frames
        at = 0
        while at < len(frames):
            last = at + 1
            start = frames[at].offset
            while last < len(frames) and frames[last].offset + frames[last].stored_bytes - start <= _READ_BYTES:
                last += 1
            end = frames[last - 1].offset + frames[last - 1].stored_bytes
            content = memoryview(await self._store.read(self._key, start, end - start))
            await asyncio.to_thread(self._check, frames[at:last], content, start)
            for frame in frames[at:last]:
                yield frame, content[frame.offset - start:frame.offset - start + frame.stored_bytes]
            at = last

    def _check(self, frames: tuple[Frame, ...], content: memoryview, start: int) -> None:
        for frame in frames:
            stored = content[frame.offset - start:frame.offset - start + frame.stored_bytes]
            if checksum(stored) != frame.checksum:
                raise BlobCorrupt(f"{self._key} is damaged at {frame.offset}", key=self._key, offset=frame.offset,
                                  hint="Restore the file from a backup, or use another image.")


async def open_source(store: Store, key: str) -> ImageSource:
    """Open an object and check its table.

    Raises:
        BlobMissing, ArchiveUnavailable: it cannot be read.
        BlobCorrupt: it is damaged.
    """
    size = await store.size(key)
    end = await store.read(key, max(0, size - TRAILER.size), TRAILER.size)
    table_bytes = parse_trailer(end, size) * ENTRY.size
    if table_bytes > _TABLE_BYTES_MAX:
        raise BlobCorrupt(f"{key} has a table of {table_bytes} bytes", key=key)
    head = await store.read(key, 0, HEADER.size)
    entries = await store.read(key, size - TRAILER.size - table_bytes, table_bytes)
    return ImageSource(store, key, parse_table(head, entries, end, size))
