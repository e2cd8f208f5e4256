"""What a new image may share: the pages that the packs of an older one hold."""

from __future__ import annotations

import secrets
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crd.archive.manifest import PACK_SHIFT
from crd.archive.names import pack_key
from crd.archive.source import open_pack
from crd.archive.threads import in_thread
from crd.errors import BlobCorrupt, BlobMissing
from crd.native.pages import PageIndex, PageKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.archive.manifest import Need
    from crd.archive.pack import PackTable
    from crd.archive.references import References
    from crd.archive.stores.store import Store


_PACKS_MAX, _PACKS_MERGED = 64, 48


@dataclass(slots=True)
class Known:
    """Pages that there are, and where.

    Attributes:
        index: of the pages; their numbers have the place of the pack in the upper half.
        packs: identifiers by place; the first is the pack that is to be made.
        digests: of the packs, but for the first, whose place is held by None.
    """

    index: PageIndex
    packs: list[int] = field(default_factory=lambda: [secrets.randbits(63) | 1])
    digests: list[bytes | None] = field(default_factory=lambda: [None])

    def learn(self, number: int, table: PackTable) -> None:
        """Take in the pages of a pack whose hashes have the same key."""
        first = len(self.packs) << PACK_SHIFT
        self.index.learn(table.hashes, array("Q", range(first, first + table.pages)))
        self.packs.append(number)
        self.digests.append(table.digest)


def worth_sharing(needs: Sequence[Need]) -> list[int]:
    """Return the packs that the next image shall share, of those that an image needs.

    An image of many packs takes long to read, so once there are too many, those that it has the fewest pages of, which
    are the smallest or the oldest, are not shared: these pages are stored again, all in the pack of the next image.
    Like runs that are merged into larger ones, a page goes through few such packs before it is written to.
    """
    packs = [pack for pack, _ in needs]
    if len(needs) >= _PACKS_MAX:
        small = {pack for pack, _ in sorted(needs, key=lambda need: need[1])[:_PACKS_MERGED]}
        packs = [pack for pack in packs if pack not in small]
    return packs


async def known_pages(store: Store, references: References, packs: Sequence[int]) -> Known:
    """Return the pages that packs have, which are held for us.

    Those that a new image shall not need are left out: damaged ones, those of a key that is to go out of use, and those
    whose hashes have another key than the first one's.
    """
    known: Known | None = None
    for number in packs:
        if not await store.is_current(pack_key(number)):
            continue
        try:
            table = await open_pack(store, number)
        except (BlobCorrupt, BlobMissing):
            references.distrust(number)  # what is in it is stored again
            continue
        known = known or Known(PageIndex(table.key))
        if table.key == known.index.key:
            await in_thread(known.learn, number, table)
    return known or Known(PageIndex(PageKey()))
