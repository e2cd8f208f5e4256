"""The protocol of all stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    Part = bytes | bytearray | memoryview


class Upload(Protocol):
    """An object being written: nobody sees it before ``commit``, and it goes with this if it was not committed."""

    async def write(self, parts: Sequence[Part]) -> None:
        """Append the parts, in order.

        Raises:
            ArchiveFull: there is no space left.
            ArchiveUnavailable: the store failed.
        """
        ...

    async def commit(self) -> None:
        """Make the object durable, and then visible under its key, which must be free.

        If this raises, be it by a cancellation, the object is not there.

        Raises:
            ArchiveFull, ArchiveUnavailable: it is not there.
            ArchiveError: the key is taken; the object there is untouched.
        """
        ...

    async def abort(self) -> None:
        """Forget what was written; does nothing after ``commit``."""
        ...


class Store(Protocol):
    """Objects under keys; an object never changes."""

    def describe(self) -> str:
        """Return where the store is, for people and labels."""
        ...

    async def create(self, key: str) -> Upload:
        """Begin an object under a key: letters, digits, dots and dashes; raises as ``Upload.write``."""
        ...

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes of an object; fewer only at its end.

        Raises:
            BlobMissing: there is no such object.
            BlobCorrupt: it cannot be one of ours.
            ArchiveUnavailable: the store failed.
        """
        ...

    async def size(self, key: str) -> int:
        """Return the bytes of an object; raises as ``read``."""
        ...

    async def is_current(self, key: str) -> bool:
        """Tell whether an object is there and kept as a new one would be: encrypted with the same key, if at all.

        Raises:
            ArchiveUnavailable: the store failed.
        """
        ...

    async def objects(self) -> dict[str, int]:
        """Return the keys of all whole objects, in order, with their bytes; raises ArchiveUnavailable."""
        ...

    async def free_bytes(self) -> int | None:
        """Return how many bytes there is room for, None if nobody knows; raises ArchiveUnavailable."""
        ...

    async def delete(self, key: str) -> None:
        """Remove an object durably; nothing if there is none."""
        ...

    async def clear_torn(self) -> int:
        """Remove what unfinished uploads left behind, and return how many; only while none is under way."""
        ...
