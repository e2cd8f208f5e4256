"""Images out of the archive: checked before the first task is made, and again as they flow."""

from __future__ import annotations

import asyncio
import mmap
from array import array
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from itertools import cycle, groupby
from typing import TYPE_CHECKING

from crd.archive import manifest, pack
from crd.archive.comparison import PageHashes
from crd.archive.names import image_key, pack_key
from crd.archive.threads import in_thread, to_end
from crd.archive.window import BLOCK_MASK, WINDOW_PAGES, windows
from crd.archive.writer import StreamWriter
from crd.errors import BlobCorrupt, BlobMissing
from crd.native.frames import blocks_of
from crd.native.memory import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from crd.archive.manifest import Manifest
    from crd.archive.pack import PackTable
    from crd.archive.references import References
    from crd.archive.stores.store import Store
    from crd.archive.window import Blocks, Window
    from crd.native.pages import PageKey

_READ_BYTES = 4 << 20
_GAP_BYTES = 32 << 10
"""Read in passing rather than by a second call."""
_TAIL_BYTES = 64 << 10


class ImageSource:
    """A stored image."""

    def __init__(self, store: Store, references: References, key: str, content: Manifest, *, threads: int) -> None:
        """Read an image; ``open_source`` makes these."""
        self._store = store
        self._references = references
        self._key = key
        self._threads = threads
        self._tables: dict[int, PackTable] = {}
        self.manifest = content
        self.checked_bytes = 0

    async def verify(self, digest: str) -> None:
        """Read everything that is stored of it, and check every byte; nothing is decompressed.

        ``checked_bytes`` says how much was read, be it that some was damaged.

        Args:
            digest: that the image must have, in hexadecimal.

        Raises:
            BlobCorrupt: it is damaged, or another image.
            BlobMissing, ArchiveUnavailable: it cannot be read.
        """
        with _about(self._key):
            await self._load_checked(digest)
        checking: asyncio.Task[None] | None = None
        try:
            for place, numbers in self._all_blocks().items():
                async for blocks in self._read(place, numbers):
                    if checking:
                        await checking
                    checking = asyncio.create_task(self._check_read(blocks))
        finally:
            if checking:
                await to_end(checking)

    async def _check_read(self, blocks: Blocks) -> None:
        await in_thread(self._check, blocks)
        self.checked_bytes += sum(map(len, blocks.values()))

    async def own_bytes(self) -> int:
        """Return the bytes of the objects that came with it; raises BlobMissing, ArchiveUnavailable."""
        own, _ = self.manifest.packs[0]
        return await self._store.size(self._key) + (await self._store.size(pack_key(own)) if own else 0)

    def _all_blocks(self) -> dict[int, list[int]]:
        return _by_pack(blocks_of(self.manifest.pages))

    async def _load_checked(self, digest: str) -> None:
        """Read the tables of all packs, and check that they are those of an image by its digest."""
        if self.manifest.digest.hex() != digest:
            raise BlobCorrupt("it holds another image than the catalog says")
        await self._load()
        if await in_thread(self._digest) != self.manifest.digest:
            raise BlobCorrupt("its packs are not those that it was made with")

    async def _load(self) -> None:
        """Read the tables of all packs."""
        for place, (number, _) in enumerate(self.manifest.packs):
            if number != manifest.NO_PACK and place not in self._tables:
                with self._trusting(number):
                    self._tables[place] = await open_pack(self._store, number)
                self.checked_bytes += len(self._tables[place].hashes)
        if len({table.key for table in self._tables.values()}) > 1:
            raise BlobCorrupt("its packs have several keys")

    @contextmanager
    def _trusting(self, number: int) -> Iterator[None]:
        """Take note if a pack turns out to be damaged."""
        try:
            yield
        except (BlobCorrupt, BlobMissing):
            self._references.distrust(number)
            raise

    def _digest(self) -> bytes:
        own = self.manifest
        return manifest.digest_of((self._tables[place].digest if place in self._tables else None
                                   for place in range(len(own.packs))), own.pieces, own.pages, own.literals)

    async def page_hashes(self, digest: str, key: PageKey | None = None) -> PageHashes:
        """Return the hashes of all pages; by another key than their own, all pages have to be opened for it.

        Args:
            digest: that the image must have, in hexadecimal.
            key: None: their own.

        Raises:
            BlobCorrupt: it is damaged, or another image.
            BlobMissing, ArchiveUnavailable: it cannot be read.
        """
        with _about(self._key):
            await self._load_checked(digest)
            own = next((table.key for table in self._tables.values()), None)
            if own is None or key in {None, own}:
                hashes = {place: table.hashes for place, table in self._tables.items()}
                return PageHashes(self.manifest.pages, hashes, own)
            assert key  # noqa: S101
            made, room = bytearray(), _room()
            with ThreadPoolExecutor(1, "crd-decompress") as executor:
                for window in windows(self.manifest):
                    await self._content(window, room, executor)
                    made += await in_thread(key.hashes, room[:len(window.pages) * PAGE_BYTES])
            return PageHashes(array("Q", range(len(self.manifest.pages))), {0: bytes(made)}, key)

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
        under_way: deque[asyncio.Task[list[memoryview]]] = deque()
        rooms = cycle([_room() for _ in range(self._threads + 2)])
        with (_about(self._key), closing(StreamWriter(fd)) as writer,
              ThreadPoolExecutor(self._threads, "crd-decompress") as executor):
            await self._load()
            try:
                for window in windows(self.manifest):
                    under_way.append(asyncio.create_task(self._content(window, next(rooms), executor)))
                    if len(under_way) > self._threads:
                        await self._write(writer, await under_way.popleft())
                while under_way:
                    await self._write(writer, await under_way.popleft())
            finally:
                for task in under_way:
                    task.cancel()
                for task in under_way:
                    with suppress(Exception, asyncio.CancelledError):
                        await to_end(task)

    async def _content(self, window: Window, room: memoryview, executor: ThreadPoolExecutor) -> list[memoryview]:
        stored: Blocks = {}
        for place, numbers in _by_pack(window.blocks).items():
            async for blocks in self._read(place, numbers):
                stored |= blocks
        return await to_end(asyncio.get_running_loop().run_in_executor(executor, self._opened, window, stored, room))

    def _opened(self, window: Window, stored: Blocks, room: memoryview) -> list[memoryview]:
        self._check(stored)
        return window.content(self._tables, stored, room)

    @staticmethod
    async def _write(writer: StreamWriter, parts: list[memoryview]) -> None:
        writing = asyncio.ensure_future(asyncio.to_thread(writer.write, parts))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            writer.stop()
            raise
        finally:
            with suppress(Exception):
                await to_end(writing)

    async def _read(self, place: int, numbers: list[int]) -> AsyncIterator[Blocks]:
        """Read blocks of a pack in order, many at a time."""
        (number, _), table = self.manifest.packs[place], self._tables[place]
        key = pack_key(number)
        with self._trusting(number), _about(key):
            for run in _runs(table, numbers):
                first, last = table.blocks[run[0]], table.blocks[run[-1]]
                content = memoryview(await self._store.read(key, first.offset,
                                                            last.offset + last.stored_bytes - first.offset))
                found = {}
                for index in run:
                    block = table.blocks[index]
                    at = block.offset - first.offset
                    found[place << manifest.PACK_SHIFT | index] = content[at:at + block.stored_bytes]
                yield found

    def _check(self, stored: Blocks) -> None:
        for at, content in stored.items():
            place = at >> manifest.PACK_SHIFT
            try:
                self._tables[place].blocks[at & BLOCK_MASK].check(content)
            except BlobCorrupt:
                number, _ = self.manifest.packs[place]
                with self._trusting(number), _about(pack_key(number)):
                    raise


def _room() -> memoryview:
    """Return room for a window, which takes no memory before it is used, and then as few page faults as may be."""
    room = mmap.mmap(-1, WINDOW_PAGES * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        room.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(room)


def _by_pack(blocks: array[int]) -> dict[int, list[int]]:
    """Return the numbers of blocks by the place of their pack."""
    return {place: [number & BLOCK_MASK for number in numbers]
            for place, numbers in groupby(blocks, lambda number: number >> manifest.PACK_SHIFT)}


def _runs(table: PackTable, numbers: list[int]) -> Iterator[list[int]]:
    """Cut ascending numbers of blocks into as many as are read at once."""
    if numbers and numbers[-1] >= len(table.blocks):
        raise BlobCorrupt("an image needs more pages than it has")
    run: list[int] = []
    for number in numbers:
        block = table.blocks[number]
        if run:
            last, first = table.blocks[run[-1]], table.blocks[run[0]]
            if (block.offset - last.offset - last.stored_bytes > _GAP_BYTES
                    or block.offset + block.stored_bytes - first.offset > _READ_BYTES):
                yield run
                run = []
        run.append(number)
    if run:
        yield run


@contextmanager
def _about(key: str) -> Iterator[None]:
    """Say which object is damaged."""
    try:
        yield
    except BlobMissing as error:
        error.details.setdefault("key", key)
        raise
    except BlobCorrupt as error:
        if "key" in error.details:
            raise
        raise BlobCorrupt(f"{key}: {error.message}", hint="Restore the file from a backup, or use another image.",
                          **{"key": key, **error.details}) from error


async def open_pack(store: Store, number: int) -> PackTable:
    """Read and check the table of a pack; raises as ``open_source``."""
    key = pack_key(number)
    with _about(key):
        size = await store.size(key)
        tail = await store.read(key, max(0, size - _TAIL_BYTES), _TAIL_BYTES)
        needed = pack.tail_bytes(tail, size)
        if needed > len(tail):
            tail = await store.read(key, size - needed, needed)
        head = tail[:pack.HEADER.size] if len(tail) == size else await store.read(key, 0, pack.HEADER.size)
        return await in_thread(pack.parse, number, head, tail[-needed:], size)


async def open_source(store: Store, references: References, crid: int, *, threads: int) -> ImageSource:
    """Open an image and check what it says of itself.

    Args:
        store: that has it.
        references: are told of packs that are damaged.
        crid: of it.
        threads: that decompress.

    Raises:
        BlobMissing, ArchiveUnavailable: it cannot be read.
        BlobCorrupt: it is damaged.
    """
    key = image_key(crid)
    with _about(key):
        head = manifest.parse_head(await store.read(key, 0, manifest.HEAD.size))
        if head.object_bytes != await store.size(key):
            raise BlobCorrupt("the object is torn")
        content = await store.read(key, 0, head.object_bytes)
        return ImageSource(store, references, key, await in_thread(manifest.decode, content), threads=threads)
