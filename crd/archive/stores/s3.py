"""Objects in a bucket of S3: created once, checked by the server as they arrive, visible at once or not at all.

An object ``KEY`` is stored as one of S3 under that name.  What is longer than 8 MiB has its first parts, 8 MiB each,
under ``KEY.parts/NUMBER-HASH``; the object under ``KEY`` is put last and holds the rest, the hashes of the parts, and

::

    -48 16  of this upload, random
    -32 4   number of parts
    -28 4   bytes of each
    -24 16  first 16 bytes of the BLAKE3 of the hashes (16 bytes each) and the 24 bytes before this
    -8  8   "CRDS3OB1"

S3's own multipart upload serves the same purpose, and is not used: through obstore it can neither be conditional nor be
found again, so what a killed daemon began would be paid for ever.  Parts of our own are listed, and an upload that is
begun again (the spool does) sends only those that are missing: a part is named by what it holds.

Every put says If-None-Match and carries a SHA-256, which the server checks.  What comes back, its reader checks.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import obstore
from blake3 import blake3
from obstore.exceptions import AlreadyExistsError

from crd.archive.stores.s3_client import RETRY_SECONDS, connect, translated
from crd.archive.threads import to_end
from crd.errors import ArchiveDenied, ArchiveError, ArchiveUnavailable, BlobCorrupt, BlobMissing

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence
    from typing import Any

    from crd.archive.stores.s3_client import Location
    from crd.archive.stores.store import Part

PART_BYTES = 8 << 20
_PARTS = ".parts/"
_PARTS_MAX = 1 << 20
_PARTS_AT_ONCE = 3
_READS_AT_ONCE = 4
_LAYOUTS_MAX = 1024
_HASH_BYTES = 16
_HEAD = struct.Struct("<16sII")
_END = struct.Struct("<16sII16s8s")
_MAGIC = b"CRDS3OB1"
_END_GUESS = 4 << 10  # holds the hashes of 2 GiB
_ATTEMPTS = 3
_PAUSE_SECONDS = 0.5

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Layout:
    """What an object is made of: the hashes of its parts, in order, and how much follows them."""

    key: str
    upload: bytes
    part_bytes: int
    hashes: bytes
    rest_bytes: int

    @property
    def n_parts(self) -> int:
        return len(self.hashes) // _HASH_BYTES

    @property
    def size(self) -> int:
        return self.part_bytes * self.n_parts + self.rest_bytes

    def pieces(self, offset: int, end: int) -> list[tuple[str, int, int]]:
        """Return what a range that is not empty is found in: name, and range there."""
        return [(self._name(number), max(0, offset - number * self.part_bytes),
                 min(self.part_bytes if number < self.n_parts else self.rest_bytes, end - number * self.part_bytes))
                for number in range(min(offset // self.part_bytes, self.n_parts),
                                    min((end - 1) // self.part_bytes, self.n_parts) + 1)]

    def _name(self, number: int) -> str:
        if number == self.n_parts:
            return self.key
        return _part_name(self.key, number, self.hashes[number * _HASH_BYTES:(number + 1) * _HASH_BYTES])


def _ending(upload: bytes, hashes: Sequence[bytes]) -> bytes:
    """Return what stands behind the rest of an object."""
    table, head = b"".join(hashes), _HEAD.pack(upload, len(hashes), PART_BYTES)
    return table + head + _check(table, head) + _MAGIC


def _check(table: bytes, head: bytes) -> bytes:
    return blake3(table).update(head).digest(length=16)


def _part_name(key: str, number: int, digest: bytes) -> str:
    return f"{key}{_PARTS}{number:06x}-{digest.hex()}"


class S3Upload:
    """An object whose parts are put while it is written."""

    def __init__(self, store: S3Store, key: str) -> None:
        """Write an object; ``S3Store.create`` makes these."""
        self._store = store
        self._key = key
        self._id = secrets.token_bytes(16)
        self._rest = bytearray()
        self._hashes: list[bytes] = []
        self._puts: set[asyncio.Task[None]] = set()
        self._there: dict[str, int] | None = None
        self._ours: list[str] = []
        self._open = True

    async def write(self, parts: Sequence[Part]) -> None:
        """Append the parts; at most four parts of the object are in memory."""
        if not self._open:
            raise ArchiveError("the object is committed or aborted")
        for part in parts:
            view = memoryview(part)
            while view:
                if len(self._rest) == PART_BYTES:
                    await self._put_part()
                taken = view[:PART_BYTES - len(self._rest)]
                self._rest += taken
                view = view[len(taken):]

    async def _put_part(self) -> None:
        """Begin to put what is full; raises what went wrong with those before."""
        if self._there is None:
            self._there = await self._store.listed(self._key + _PARTS)
        while len(self._puts) >= _PARTS_AT_ONCE:
            await self._settle(asyncio.FIRST_COMPLETED)
        content, self._rest = bytes(self._rest), bytearray()
        digest = await asyncio.to_thread(lambda: blake3(content).digest(length=_HASH_BYTES))
        name = _part_name(self._key, len(self._hashes), digest)
        self._hashes.append(digest)
        if len(self._hashes) > _PARTS_MAX:
            raise ArchiveError(f"{self._key} is larger than {_PARTS_MAX * PART_BYTES >> 40} TiB: none such is kept")
        if self._there.get(name) != PART_BYTES:
            self._ours.append(name)
            self._puts.add(asyncio.create_task(self._put(name, content)))

    async def _put(self, name: str, content: bytes) -> None:
        with suppress(AlreadyExistsError):  # it is what its name says: an answer was lost, or an upload cut off
            await self._store.put(name, [content])

    async def _settle(self, until: str = asyncio.ALL_COMPLETED) -> None:
        if self._puts:
            done, self._puts = await asyncio.wait(self._puts, return_when=until)
            for task in done:
                task.result()

    async def commit(self) -> None:
        """Put the rest, which makes the object visible; or leave nothing, as far as the store can be reached."""
        try:
            await self._settle()
            await self._publish([bytes(self._rest), _ending(self._id, self._hashes)])
        except BaseException:
            await asyncio.shield(self.abort())
            raise
        self._close()

    async def _publish(self, content: list[bytes]) -> None:
        """Create the object itself.  What fails on the way may have been done all the same: it is taken back."""
        for _ in range(_ATTEMPTS):
            putting = asyncio.ensure_future(self._store.put(self._key, content))
            try:
                await to_end(putting)
            except AlreadyExistsError as error:
                upload = await self._store.upload_of(self._key)
                if upload == self._id:  # by ourselves: an answer was lost
                    return
                if upload is not None:  # else another that was under way was given up: 409
                    raise ArchiveError(f"{self._store.describe()}/{self._key} exists already", key=self._key) from error
            except BaseException:
                await asyncio.shield(self._take_back())
                raise
            else:
                return
        raise ArchiveError(f"{self._store.describe()}/{self._key}: others create and delete it", key=self._key)

    async def _take_back(self) -> None:
        with suppress(ArchiveError):
            if await self._store.upload_of(self._key) == self._id:
                await self._store.remove([self._key])

    async def abort(self) -> None:
        """Remove what was put; if the store cannot be reached, its next ``clear_torn`` does.

        What is under way is waited for: the server may go on with a put that is given up here.
        """
        if not self._open:
            return
        await asyncio.gather(*self._puts, return_exceptions=True)
        with suppress(ArchiveError):
            await self._store.remove(self._ours)
        self._close()

    def _close(self) -> None:
        self._open = False
        self._rest = bytearray()
        self._store.under_way.discard(self._key)


class S3Store:
    """Objects of one prefix of a bucket, which is this store's alone to write.

    Attributes:
        under_way: keys of uploads that are neither committed nor aborted.
    """

    def __init__(self, location: Location, prefix: str = "", *, retry_seconds: float = RETRY_SECONDS) -> None:
        """Use a prefix below that of a location, and try each request for so long; nothing is sent yet.

        Raises:
            SettingsError: the credentials cannot be read.
        """
        self._where = "/".join(filter(None, (str(location), prefix)))
        self._retry_seconds = retry_seconds
        self._client = connect(location, prefix, retry_seconds=retry_seconds)
        self._layouts: OrderedDict[str, _Layout] = OrderedDict()
        self.under_way: set[str] = set()

    def describe(self) -> str:
        """Return bucket and prefix."""
        return self._where

    async def create(self, key: str) -> S3Upload:
        """Begin an object; two uploads of one key at a time are none."""
        if key in self.under_way:
            raise ArchiveError(f"{self._where}/{key} is being written already", key=key)
        self.under_way.add(key)
        return S3Upload(self, key)

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """Read a range, from several parts at once if it lies in several."""
        layout = await self._layout(key)
        end = min(offset + length, layout.size)
        if offset >= end:
            return b""
        room = asyncio.Semaphore(_READS_AT_ONCE)

        async def get(name: str, start: int, stop: int) -> obstore.Bytes:
            async with room:
                content = await self._persistently(lambda: obstore.get_range_async(
                    self._client, name, start=start, end=stop), name)
            if len(content) != stop - start:
                raise BlobCorrupt(f"{self._where}/{name} is shorter than it was", key=key)
            return content

        try:
            found = await asyncio.gather(*(get(*piece) for piece in layout.pieces(offset, end)))
        except (BlobMissing, BlobCorrupt):
            self._layouts.pop(key, None)
            raise
        return bytes(found[0]) if len(found) == 1 else b"".join(found)

    async def size(self, key: str) -> int:
        """Read the end of the object."""
        return (await self._layout(key)).size

    async def is_current(self, key: str) -> bool:
        """All are kept alike."""
        try:
            await self._layout(key)
        except BlobMissing:
            return False
        return True

    async def _layout(self, key: str) -> _Layout:
        """Return what an object is made of; raises BlobMissing, BlobCorrupt, ArchiveUnavailable."""
        if found := self._layouts.get(key):
            self._layouts.move_to_end(key)
            return found
        size, end = await self._end_of(key, _END_GUESS)
        if len(end) < _END.size or not end.endswith(_MAGIC):
            raise BlobCorrupt(f"{self._where}/{key} was not written by this version of crd, or is torn", key=key)
        upload, n_parts, part_bytes, check, _ = _END.unpack(end[-_END.size:])
        table_bytes = n_parts * _HASH_BYTES
        if n_parts > _PARTS_MAX or not part_bytes or size < table_bytes + _END.size:
            raise BlobCorrupt(f"{self._where}/{key} has impossible sizes", key=key)
        if len(end) < table_bytes + _END.size:
            size, end = await self._end_of(key, table_bytes + _END.size)
        table = end[-_END.size - table_bytes:-_END.size]
        if _check(table, _HEAD.pack(upload, n_parts, part_bytes)) != check:
            raise BlobCorrupt(f"{self._where}/{key}: its end is damaged", key=key)
        layout = _Layout(key, upload, part_bytes, table, size - table_bytes - _END.size)
        self._layouts[key] = layout
        if len(self._layouts) > _LAYOUTS_MAX:
            self._layouts.popitem(last=False)
        return layout

    async def _end_of(self, key: str, length: int) -> tuple[int, bytes]:
        """Return the size of an object of S3, and its last bytes."""
        async def get() -> tuple[int, bytes]:
            found = await obstore.get_async(self._client, key, options={"range": {"suffix": length}})
            return found.meta["size"], bytes(await found.bytes_async())

        return await self._persistently(get, key)

    async def upload_of(self, key: str) -> bytes | None:
        """Return which upload made an object; None: it is not there, empty: nobody knows."""
        self._layouts.pop(key, None)
        try:
            return (await self._layout(key)).upload
        except BlobMissing:
            return None
        except BlobCorrupt:
            return b""

    async def objects(self) -> dict[str, int]:
        """List the prefix: whole objects, with their parts counted in."""
        listed = await self.listed("")
        sizes = {key: max(0, size - _END.size) for key, size in listed.items() if _PARTS not in key}
        for name, size in listed.items():
            key, is_part, _ = name.partition(_PARTS)
            if is_part and key in sizes:
                sizes[key] += size - _HASH_BYTES
        return dict(sorted(sizes.items()))

    async def listed(self, prefix: str) -> dict[str, int]:
        """Return the names of all objects of S3 under a prefix, with their bytes; raises ArchiveUnavailable."""
        async def ask() -> dict[str, int]:
            found: dict[str, int] = {}
            async for chunk in obstore.list(self._client, prefix.rstrip("/") or None):
                found |= {meta["path"]: meta["size"] for meta in chunk}
            return found

        return await self._persistently(ask, prefix)

    async def put(self, name: str, content: list[bytes]) -> None:
        """Create an object of S3; raises AlreadyExistsError, ArchiveFull, ArchiveUnavailable."""
        await self._persistently(lambda: obstore.put_async(self._client, name, content, mode="create"), name)

    async def remove(self, names: Iterable[str]) -> None:
        """Delete objects of S3, those of them that are there; raises ArchiveUnavailable."""
        if names := list(names):
            with suppress(BlobMissing):
                await self._persistently(lambda: obstore.delete_async(self._client, names), names[0])

    async def _persistently(self, ask: Callable[[], Coroutine[Any, Any, T]], name: str) -> T:
        """Ask until there is an answer.  The library asks again by itself, but not after all that can be cured so."""
        deadline = time.monotonic() + self._retry_seconds
        while True:
            try:
                with translated(self._where, name):
                    return await ask()
            except ArchiveDenied:
                raise
            except ArchiveUnavailable:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_PAUSE_SECONDS)

    async def delete(self, key: str) -> None:
        """Remove an object, then its parts."""
        self._layouts.pop(key, None)
        await self.remove([key])
        await self.remove(await self.listed(key + _PARTS))

    async def clear_torn(self) -> int:
        """Remove parts whose object is not there."""
        listed = await self.listed("")
        torn = [name for name in listed if _PARTS in name and name.partition(_PARTS)[0] not in listed]
        await self.remove(torn)
        return len(torn)
