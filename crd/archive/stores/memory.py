"""Objects in memory: for tests and for images that shall not outlive the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.errors import ArchiveError, ArchiveFull, BlobMissing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.archive.stores.store import Part


class MemoryUpload:
    """Bytes that belong to no key yet."""

    def __init__(self, store: MemoryStore, key: str) -> None:
        self._store = store
        self._key = key
        self._content: bytearray | None = bytearray()

    async def write(self, parts: Sequence[Part]) -> None:
        """Append the parts."""
        assert self._content is not None  # noqa: S101
        for part in parts:
            self._content += part
        if self._store.used + len(self._content) > self._store.capacity_bytes:
            raise ArchiveFull("the memory store is full")

    async def commit(self) -> None:
        """Put the bytes under the key."""
        assert self._content is not None  # noqa: S101
        if self._key in self._store.contents:
            raise ArchiveError(f"{self._key} exists already")
        self._store.contents[self._key] = bytes(self._content)
        self._content = None

    async def abort(self) -> None:
        """Forget the bytes."""
        self._content = None


class MemoryStore:
    """A dictionary with a capacity."""

    def __init__(self, capacity_bytes: int = 1 << 40) -> None:
        """Keep up to that many bytes."""
        self.capacity_bytes = capacity_bytes
        self.contents: dict[str, bytes] = {}

    @property
    def used(self) -> int:
        """Bytes of all objects."""
        return sum(map(len, self.contents.values()))

    def describe(self) -> str:
        """Say what it is."""
        return "memory"

    async def create(self, key: str) -> MemoryUpload:
        """Begin an object."""
        return MemoryUpload(self, key)

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """Return part of an object."""
        return self._object(key)[offset:offset + length]

    async def size(self, key: str) -> int:
        """Return its length."""
        return len(self._object(key))

    async def is_current(self, key: str) -> bool:
        """All are kept alike."""
        return key in self.contents

    async def objects(self) -> dict[str, int]:
        """Return all keys, in order, with the length of what is there."""
        return {key: len(self.contents[key]) for key in sorted(self.contents)}

    async def free_bytes(self) -> int | None:
        """See ``Store``."""
        return None

    async def delete(self, key: str) -> None:
        """Remove an object."""
        self.contents.pop(key, None)

    async def clear_torn(self) -> int:
        """Nothing is ever torn here."""
        return 0

    def _object(self, key: str) -> bytes:
        if key not in self.contents:
            raise BlobMissing(f"{key} is missing")
        return self.contents[key]
