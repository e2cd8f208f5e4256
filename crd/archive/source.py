"""Images out of the archive: checked before the first task is made, and again as they flow."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from crd.archive.joiner import FrameJoiner
from crd.archive.layout import ENTRY, HEADER, TRAILER, Frame, Table, checksum, parse_table, parse_trailer
from crd.archive.threads import in_thread, to_end
from crd.errors import BlobCorrupt

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from crd.archive.joiner import Piece
    from crd.archive.stores.store import Store

_READ_BYTES = 4 << 20
_READ_FRAMES = 1024


class ImageSource:
    """A stored image: ``table`` says what it is made of."""

    def __init__(self, store: Store, key: str, table: Table, *, threads: int) -> None:
        """Read an object; ``open_source`` makes these."""
        self._store = store
        self._key = key
        self._threads = threads
        self.table = table

    async def verify(self, digest: str) -> None:
        """Read everything that is stored, and check every byte of it; nothing is decompressed.

        Args:
            digest: that the image must have, in hexadecimal.

        Raises:
            BlobCorrupt: it is damaged, or another image.
            BlobMissing, ArchiveUnavailable: it cannot be read.
        """
        with _about(self._key):
            if self.table.digest.hex() != digest:
                raise BlobCorrupt("it holds another image than the catalog says")
            async for _pieces in self._pieces():
                pass

    async def pump(self, fd: int) -> None:
        """Write the stream to a pipe.

        Args:
            fd: the end to write.  It stays the caller's, and nothing writes to it any more when this returns or
                raises, be it by a cancellation.

        Raises:
            BlobCorrupt: it is damaged: what was written so far is no image.
            BlobMissing, ArchiveUnavailable: it cannot be read.
            ImageSinkClosed: nobody reads the pipe.
            ArchiveError: the stream cannot be written.
        """
        with (_about(self._key), closing(FrameJoiner(fd)) as joiner,
              ThreadPoolExecutor(self._threads, "crd-decompress") as executor):
            async for pieces in self._pieces():
                joiner.give(pieces)
                await self._join(joiner, executor)

    async def _join(self, joiner: FrameJoiner, executor: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        joining = asyncio.gather(*(loop.run_in_executor(executor, joiner.work) for _ in range(self._threads)),
                                 return_exceptions=True)
        try:
            await asyncio.shield(joining)
        except asyncio.CancelledError:
            joiner.stop()
            raise
        finally:
            errors = await to_end(joining)
        for error in errors:
            if error:
                raise error

    async def _pieces(self) -> AsyncIterator[list[Piece]]:
        """Read the frames in order, many at a time, each checked."""
        for frames in self._runs():
            start, end = frames[0].offset, frames[-1].offset + frames[-1].stored_bytes
            content = memoryview(await self._store.read(self._key, start, end - start))
            pieces = [(frame, content[frame.offset - start:frame.offset - start + frame.stored_bytes])
                      for frame in frames]
            await in_thread(_check, pieces)
            yield pieces

    def _runs(self) -> Iterator[list[Frame]]:
        """Cut the table into as much as is read at once."""
        run: list[Frame] = []
        for frame in self.table.frames():
            if run and (len(run) == _READ_FRAMES
                        or frame.offset + frame.stored_bytes - run[0].offset > _READ_BYTES):
                yield run
                run = []
            run.append(frame)
        if run:
            yield run


def _check(pieces: list[Piece]) -> None:
    for frame, stored in pieces:
        if checksum(stored) != frame.checksum:
            raise BlobCorrupt(f"the frame at {frame.offset} is damaged", offset=frame.offset)


@contextmanager
def _about(key: str) -> Iterator[None]:
    """Say which object is damaged."""
    try:
        yield
    except BlobCorrupt as error:
        raise BlobCorrupt(f"{key}: {error.message}", hint="Restore the file from a backup, or use another image.",
                          **{"key": key, **error.details}) from error


async def open_source(store: Store, key: str, *, threads: int) -> ImageSource:
    """Open an object and check its table.

    Args:
        store: that has it.
        key: of it.
        threads: that decompress.

    Raises:
        BlobMissing, ArchiveUnavailable: it cannot be read.
        BlobCorrupt: it is damaged.
    """
    with _about(key):
        size = await store.size(key)
        end = await store.read(key, max(0, size - TRAILER.size), TRAILER.size)
        table_bytes = parse_trailer(end, size) * ENTRY.size
        head = await store.read(key, 0, HEADER.size)
        entries = await store.read(key, size - TRAILER.size - table_bytes, table_bytes)
        return ImageSource(store, key, await in_thread(parse_table, head, entries, end, size), threads=threads)
