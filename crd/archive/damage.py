"""Which images are hurt by a pack that is damaged or missing: those that need a block of it that is not as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.archive.manifest import PACK_SHIFT
from crd.archive.names import pack_key
from crd.archive.source import open_pack, open_source
from crd.archive.threads import in_thread
from crd.errors import BlobCorrupt, BlobMissing
from crd.native.frames import blocks_of

if TYPE_CHECKING:
    from crd.archive.manifest import Manifest
    from crd.archive.references import References
    from crd.archive.stores.store import Store


async def hurt_by(store: Store, references: References, pack: int) -> list[int]:
    """Return the images that a pack hurts as it is now; it is read once, and the manifest of each that needs it.

    Raises:
        ArchiveUnavailable: they cannot be read.
    """
    needing = await references.needing(pack)
    try:
        damaged = await _damaged_blocks(store, pack)
    except (BlobCorrupt, BlobMissing):
        return needing
    hurt = []
    for crid in needing:
        try:
            manifest = (await open_source(store, references, crid, threads=1)).manifest
        except (BlobCorrupt, BlobMissing):
            continue  # hurt by another object
        if await in_thread(_needs_one, manifest, pack, damaged):
            hurt.append(crid)
    return hurt


async def _damaged_blocks(store: Store, pack: int) -> set[int]:
    """Return the numbers of these; raises BlobCorrupt, BlobMissing: the pack does not tell."""
    damaged = set()
    for number, block in enumerate((await open_pack(store, pack)).blocks):
        try:
            block.check(memoryview(await store.read(pack_key(pack), block.offset, block.stored_bytes)))
        except BlobCorrupt:
            damaged.add(number)
    return damaged


def _needs_one(manifest: Manifest, pack: int, blocks: set[int]) -> bool:
    places = [place for place, (number, _) in enumerate(manifest.packs) if number == pack]
    return not {place << PACK_SHIFT | block for place in places for block in blocks}.isdisjoint(
        blocks_of(manifest.pages))
