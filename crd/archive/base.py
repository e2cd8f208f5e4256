"""What a new image may share: the pages that the packs of an older one hold."""

from __future__ import annotations

import logging
import secrets
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crd.archive.manifest import PACK_SHIFT
from crd.archive.names import pack_key
from crd.archive.source import open_pack
from crd.archive.threads import in_thread
from crd.errors import ArchiveUnavailable, BlobCorrupt, BlobMissing
from crd.native.pages import PageIndex, PageKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.archive.followed import Followed
    from crd.archive.manifest import Need
    from crd.archive.pack import PackTable
    from crd.archive.references import References
    from crd.archive.stores.store import Store


logger = logging.getLogger(__name__)

_DENSE = 0.4
_PACKS_MAX, _PACKS_MERGED = 64, 48


@dataclass(slots=True)
class Known:
    """Pages that there are, and where.

    Attributes:
        index: of the pages; their numbers have the place of the pack in the upper half.
        packs: identifiers by place; the first is the pack that is to be made.
        digests: of the packs, but for the first, whose place is held by None.
        sizes: how many pages they have.
        followed: the image whose pages the stream may leave out.
    """

    index: PageIndex
    packs: list[int] = field(default_factory=lambda: [secrets.randbits(63) | 1])
    digests: list[bytes | None] = field(default_factory=lambda: [None])
    sizes: list[int] = field(default_factory=lambda: [0])
    followed: Followed | None = None

    def learn(self, number: int, table: PackTable) -> None:
        """Take in the pages of a pack whose hashes have the same key."""
        first = len(self.packs) << PACK_SHIFT
        self.index.learn(table.hashes, array("Q", range(first, first + table.pages)))
        self.packs.append(number)
        self.digests.append(table.digest)
        self.sizes.append(table.pages)


async def known_pages(store: Store, references: References, needs: Sequence[Need]) -> Known:
    """Return the pages that an image needs, or may share for nothing, of packs that are held for us.

    Left out are packs that the next image shall not need: damaged ones, those of a key that is to go out of use, those
    whose hashes have another key than the first one's, and those that are not ``worth_sharing``.
    """
    found: list[tuple[Need, PackTable]] = []
    for number, needed in needs:
        try:
            if not await store.is_current(pack_key(number)):
                continue
            table = await open_pack(store, number)
        except (BlobCorrupt, BlobMissing):
            references.distrust(number)  # what is in it is stored again
            continue
        except ArchiveUnavailable as error:  # likewise: a spool may take in what the store behind it cannot compare
            logger.info("pages of pack %016x are stored again: %s", number, error.message,
                        extra={"event": "archive.not-shared"})
            continue
        if not found or table.key == found[0][1].key:
            found.append(((number, needed), table))
    known = Known(PageIndex(found[0][1].key if found else PageKey()))
    worth = worth_sharing([(need, table.pages) for need, table in found])
    for (number, _), table in found:
        if number in worth:
            await in_thread(known.learn, number, table)
    return known


def worth_sharing(packs: Sequence[tuple[Need, int]]) -> set[int]:
    """Return which packs of an image the next one shall share; of each what is needed and how many pages it has.

    What is left of a pack that has mostly been written to since lies among pages that nobody wants and that are read
    all the same; and an image of many packs takes many reads.  So these pages are stored again, together in the pack
    of the next image.  Like runs that are merged into larger ones, a page goes through few packs before it changes.
    """
    dense = [need for need, pages in packs if need[1] >= _DENSE * pages]
    if len(dense) >= _PACKS_MAX:
        dense = sorted(dense, key=lambda need: need[1])[_PACKS_MERGED:]
    return {number for number, _ in dense}
