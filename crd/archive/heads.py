"""What is known of the newest images, so that those that follow need not read it again: a cache, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.archive.base import Base, MemoryMap
from crd.archive.manifest import NO_PACK
from crd.native.numbers import replace_places

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.archive.manifest import Manifest

BYTES_MAX = 32 << 20


@dataclass(frozen=True, slots=True)
class Head:
    """An image, and 16 bytes of hash of each of its pages."""

    manifest: Manifest
    hashes: bytes | bytearray

    @property
    def bytes(self) -> int:
        """How much memory it takes, about."""
        manifest = self.manifest
        return len(self.hashes) + 8 * len(manifest.pages) + 4 * len(manifest.pieces) + len(manifest.literals)

    def base(self, packs: Sequence[int]) -> Base | None:
        """Return it as the base of an image that is to have these packs; None if they lack one of its own.

        Raises:
            ArchiveError: no image can follow it.
        """
        place = {number: index for index, number in enumerate(packs)}
        needed = self.manifest.packs
        if not {*needed} - {NO_PACK} <= place.keys():
            return None
        numbers = self.manifest.pages[:]
        replace_places(numbers, [place.get(number, 0) for number in needed])
        return Base(MemoryMap(self.manifest.literals), numbers, self.hashes)


class Heads:
    """The images that were used last."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        """Keep up to so many bytes."""
        self._bytes_max = bytes_max
        self._heads: OrderedDict[int, Head] = OrderedDict()

    def put(self, crid: int, head: Head) -> None:
        """Keep one, and let go of those that were used longest ago."""
        self.drop(crid)
        self._heads[crid] = head
        while sum(kept.bytes for kept in self._heads.values()) > self._bytes_max:
            self._heads.popitem(last=False)

    def get(self, crid: int) -> Head | None:
        """Return one that is kept."""
        if head := self._heads.get(crid):
            self._heads.move_to_end(crid)
        return head

    def drop(self, crid: int) -> None:
        """Let go of one."""
        self._heads.pop(crid, None)
