"""What is known of the newest images, so that those that follow need not read it again: a cache, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.archive.base import Known, worth_sharing
from crd.archive.followed import Followed, MemoryMap
from crd.archive.manifest import NO_PACK, PACK_SHIFT, digest_of
from crd.archive.names import pack_key
from crd.archive.source import open_pack, open_source
from crd.archive.threads import in_thread
from crd.errors import BlobCorrupt
from crd.native.numbers import replace_places
from crd.native.pages import HASH_BYTES, PageIndex

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crd.archive.manifest import Manifest
    from crd.archive.pack import PackTable
    from crd.archive.references import References
    from crd.archive.stores.store import Store
    from crd.native.pages import PageKey

BYTES_MAX = 32 << 20
_PAGE_MASK = (1 << PACK_SHIFT) - 1


@dataclass(frozen=True, slots=True)
class Head:
    """An image.

    Attributes:
        manifest: of it.
        key: by which all its pages are hashed.
        hashes: 16 bytes of each.
        digests: of its packs, by place.
        sizes: how many pages those have.
    """

    manifest: Manifest
    key: PageKey
    hashes: bytes | bytearray
    digests: list[bytes | None]
    sizes: list[int]

    @property
    def bytes(self) -> int:
        """How much memory it takes, about."""
        manifest = self.manifest
        return len(self.hashes) + 8 * len(manifest.pages) + 4 * len(manifest.pieces) + len(manifest.literals)

    def known(self, packs: Iterable[int]) -> Known | None:
        """Return its pages, for an image that follows it.

        None if not all of its packs are among these, or the next image had better store some of their pages again.
        That the packs are kept as new ones would be is known: they were when it was made, and keys never change while
        we run.
        """
        needed = {place: number for place, (number, _) in enumerate(self.manifest.packs) if number != NO_PACK}
        if not worth_sharing(list(zip(self.manifest.packs, self.sizes, strict=True))) >= {*needed.values()} <= {*packs}:
            return None
        known, places = Known(PageIndex(self.key)), [0] * len(self.manifest.packs)
        for place, number in needed.items():
            places[place] = len(known.packs)
            known.packs.append(number)
            known.digests.append(self.digests[place])
            known.sizes.append(self.sizes[place])
        numbers = self.manifest.pages[:]
        replace_places(numbers, places)
        known.index.learn(self.hashes, numbers)
        known.followed = Followed(MemoryMap(self.manifest.literals), numbers, self.hashes)
        return known


class Heads:
    """The images that were used last."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        """Keep up to so many bytes."""
        self._bytes_max = bytes_max
        self._heads: OrderedDict[int, Head] = OrderedDict()
        self._bytes = 0

    def put(self, crid: int, head: Head) -> None:
        """Keep one, and let go of those that were used longest ago."""
        self.drop(crid)
        self._heads[crid] = head
        self._bytes += head.bytes
        while self._bytes > self._bytes_max:
            self.drop(next(iter(self._heads)))

    def get(self, crid: int) -> Head | None:
        """Return one that is kept."""
        if head := self._heads.get(crid):
            self._heads.move_to_end(crid)
        return head

    def drop(self, crid: int) -> None:
        """Let go of one."""
        if head := self._heads.pop(crid, None):
            self._bytes -= head.bytes


async def read_head(store: Store, references: References, crid: int, digest: str) -> Head | None:
    """Read what is to be known of an image; None if new packs are not kept as its own are.

    Args:
        store: that has it.
        references: are told of packs that are damaged.
        crid: of it.
        digest: that it must have, in hexadecimal.

    Raises:
        BlobCorrupt: it is damaged, or another image.
        BlobMissing, ArchiveUnavailable: it cannot be read.
    """
    content = (await open_source(store, references, crid, threads=1)).manifest
    tables: list[PackTable | None] = []
    for number, _ in content.packs:
        if number != NO_PACK and not await store.is_current(pack_key(number)):
            return None
        tables.append(await open_pack(store, number) if number != NO_PACK else None)
    return await in_thread(_head, content, tables, digest)


def _head(content: Manifest, tables: list[PackTable | None], digest: str) -> Head | None:
    digests = [table.digest if table else None for table in tables]
    if digest_of(digests, content.pieces, content.pages, content.literals).hex() != digest:
        raise BlobCorrupt("it is another image than the catalog says")
    keys = {table.key for table in tables if table}
    if len(keys) != 1:
        return None
    hashes = bytearray()
    for number in content.pages:
        at = (number & _PAGE_MASK) * HASH_BYTES
        hashes += tables[number >> PACK_SHIFT].hashes[at:at + HASH_BYTES]  # type: ignore[union-attr]  # it has a page
    return Head(content, keys.pop(), hashes, digests, [table.pages if table else 0 for table in tables])
