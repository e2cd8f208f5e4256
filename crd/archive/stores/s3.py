"""Objects in a bucket of S3: created once, checked by the server as they arrive, visible at once or not at all.

Every put says If-None-Match and carries a SHA-256, which the server checks.  What comes back, its reader checks.
``s3_object.py`` says how an object lies in the bucket.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

from crd.archive.stores.s3_client import RETRY_SECONDS, Client
from crd.archive.stores.s3_object import END_BYTES, HASH_BYTES, PARTS, Layout, ending_bytes
from crd.archive.stores.s3_upload import S3Upload
from crd.errors import ArchiveError, BlobCorrupt, BlobMissing

if TYPE_CHECKING:
    from collections.abc import Iterable

    import obstore

    from crd.archive.stores.lease import Lease
    from crd.archive.stores.s3_client import Location

_READS_AT_ONCE = 4
_LAYOUTS_MAX = 1024
_LAYOUT_BYTES_MAX = 64 << 10  # of an object of 16 GiB
_END_GUESS = 4 << 10  # holds the hashes of 1 GiB


class S3Store:
    """Objects of one prefix of a bucket, which is this store's alone to write.

    Attributes:
        under_way: keys of uploads that are neither committed nor aborted.
    """

    def __init__(self, location: Location, prefix: str = "", *, lease: Lease | None = None,
                 retry_seconds: float = RETRY_SECONDS) -> None:
        """Use a prefix below that of a location; nothing is sent yet.

        Args:
            location: of the archive.
            prefix: below that of the location.
            lease: that must be held whenever something is written or removed.
            retry_seconds: how long each request is tried.

        Raises:
            SettingsError: the credentials cannot be read.
        """
        self._client = Client(location, prefix, retry_seconds=retry_seconds)
        self._where = self._client.where
        self._lease = lease
        self._layouts: OrderedDict[str, Layout] = OrderedDict()
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
                content = await self._client.get(name, start, stop)
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

    async def _layout(self, key: str) -> Layout:
        """Return what an object is made of; raises BlobMissing, BlobCorrupt, ArchiveUnavailable."""
        if found := self._layouts.get(key):
            self._layouts.move_to_end(key)
            return found
        try:
            size, end = await self._client.get_end(key, _END_GUESS)
            needed = ending_bytes(end, size)
            if len(end) < needed:
                size, end = await self._client.get_end(key, needed)
            layout = Layout.parse(key, end[-needed:], size)
        except BlobCorrupt as error:
            raise BlobCorrupt(f"{self._where}/{key}: {error.message}", key=key) from error
        if len(layout.hashes) > _LAYOUT_BYTES_MAX:
            return layout
        self._layouts[key] = layout
        if len(self._layouts) > _LAYOUTS_MAX:
            self._layouts.popitem(last=False)
        return layout

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
        sizes = {key: max(0, size - END_BYTES) for key, size in listed.items() if PARTS not in key}
        for name, size in listed.items():
            key, is_part, _ = name.partition(PARTS)
            if is_part and key in sizes:
                sizes[key] += size - HASH_BYTES
        return dict(sorted(sizes.items()))

    async def listed(self, directory: str) -> dict[str, int]:
        """Return the names of all objects of S3 in a directory, with their bytes; raises ArchiveUnavailable."""
        return await self._client.list(directory)

    async def put(self, name: str, content: list[bytes]) -> None:
        """Create an object of S3; raises AlreadyExistsError, ArchiveFull, ArchiveUnavailable, ArchiveInUse."""
        self._check_lease()
        await self._client.put(name, content)

    async def remove(self, names: Iterable[str]) -> None:
        """Delete objects of S3, those of them that are there; raises ArchiveUnavailable, ArchiveInUse."""
        self._check_lease()
        if names := list(names):
            await self._client.delete(names)

    def _check_lease(self) -> None:
        if self._lease:
            self._lease.check()

    async def free_bytes(self) -> int | None:
        """See ``Store``: a bucket has no end that we know of."""
        return None

    async def delete(self, key: str) -> None:
        """Remove an object, then its parts."""
        self._layouts.pop(key, None)
        await self.remove([key])
        await self.remove(await self.listed(key + PARTS))

    async def clear_torn(self) -> int:
        """Remove parts whose object is not there."""
        listed = await self.listed("")
        torn = [name for name in listed if PARTS in name and name.partition(PARTS)[0] not in listed]
        await self.remove(torn)
        return len(torn)
