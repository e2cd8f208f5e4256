"""Pages of two images compared, and where they are."""

from __future__ import annotations

import pytest

from crd.archive.archive import Archive
from crd.archive.comparison import differing, memory_of
from crd.archive.names import pack_key
from crd.archive.stores.memory import MemoryStore
from crd.errors import ArchiveError, BlobCorrupt
from crd.ids import Crid
from crd.image.framing import FRAME
from crd.image.memory_difference import Run
from crd.image.profile import PAGE_BYTES, PageRun, Pages, SharedPages
from tests.unit.archive.streams import store_image, stream


class ReadStore(MemoryStore):
    """Knows which objects were read."""

    def __init__(self) -> None:
        super().__init__()
        self.read_bytes = 0

    async def read(self, key: str, offset: int, length: int) -> bytes:
        found = await super().read(key, offset, length)
        self.read_bytes += len(found)
        return found


PAGES = 9000
OTHERS = {0, 1, 4095, 4096, 8999}
"""Pages of the second image, which has more of them than are compared at once, that are not as in the first."""


@pytest.mark.parametrize("related", [True, False])
async def test_pages_are_compared_and_opened_only_if_they_must_be(related: bool) -> None:  # noqa: FBT001
    store = ReadStore()
    async with Archive(store) as archive:
        digests = {}
        for crid, numbers in ((1, range(PAGES)), (2, [n + PAGES * (n in OTHERS) for n in range(PAGES)])):
            digests[crid] = (await store_image(archive, crid, stream(numbers), base=1 if related else None)).digest
        one, other = [await archive.source(Crid(crid)) for crid in (1, 2)]
        store.read_bytes = 0
        ours = await one.page_hashes(digests[1])
        theirs = await other.page_hashes(digests[2], ours.key)
        assert (store.read_bytes < PAGES * PAGE_BYTES // 10) is related
        assert differing(ours, theirs, PAGES, 0, 0) == len(OTHERS)
        assert differing(ours, theirs, PAGES - 2, 2, 2) == len(OTHERS) - 2
        assert differing(ours, theirs, PAGES - 1, 0, 1) == PAGES - 1
        assert differing(ours, ours, PAGES, 0, 0) == 0
        with pytest.raises(BlobCorrupt):
            await other.page_hashes(digests[1])


async def test_a_pack_that_was_exchanged_is_not_believed() -> None:
    store = MemoryStore()
    async with Archive(store) as archive:
        digest = (await store_image(archive, 1, stream(range(10)))).digest
        await store_image(archive, 2, stream(range(10, 20)))
        source, another = await archive.source(Crid(1)), await archive.source(Crid(2))
        (mine, _), (others, _) = source.manifest.packs[0], another.manifest.packs[0]
        store.contents[pack_key(mine)] = store.contents[pack_key(others)]
        with pytest.raises(BlobCorrupt):
            await source.page_hashes(digest)


def literals(*records: Pages | SharedPages, pages: int | None = None) -> bytes:
    """Return records as a manifest has them, without their pages; ``pages``: how many the frames say that there are."""
    parts = []
    for record in records:
        payload = record.encode()
        n_pages = sum(run.pages for run in record.runs) if pages is None else pages
        parts += [FRAME.pack(record.record_type, len(payload) + n_pages * PAGE_BYTES), payload]
    return b"".join([FRAME.pack(77, 3 + PAGE_BYTES), b"abc", *parts])


def runs(*found: tuple[int, int]) -> list[PageRun]:
    return [PageRun(address=place * PAGE_BYTES, pages=pages) for place, pages in found]


def test_where_pages_are() -> None:
    memory = memory_of(literals(Pages(pid=7, runs=runs((1, 2), (9, 1))), SharedPages(objref=3, runs=runs((0, 4))),
                                Pages(pid=7, runs=runs((20, 1))), Pages(pid=8, runs=runs((2, 2)))))
    assert {pid: list(found) for pid, found in memory.private.items()} == {
        7: [Run(PAGE_BYTES, 2, 1), Run(9 * PAGE_BYTES, 1, 3), Run(20 * PAGE_BYTES, 1, 8)],
        8: [Run(2 * PAGE_BYTES, 2, 9)]}
    assert {objref: list(found) for objref, found in memory.shared.items()} == {3: [Run(0, 4, 4)]}
    assert list(memory.private[7]) == list(memory.private[7])


@pytest.mark.parametrize("hostile", [
    literals(Pages(pid=7, runs=runs((5, 2), (6, 1)))),
    literals(Pages(pid=7, runs=runs((5, 1))), Pages(pid=7, runs=runs((1, 1)))),
    literals(Pages(pid=7, runs=[PageRun(address=5, pages=1)])), literals(Pages(pid=7, runs=runs((1, 0)))),
    literals(Pages(pid=7, runs=runs((1, 1))), pages=2), literals(Pages(pid=7, runs=runs((1, 1 << 60))), pages=1),
    FRAME.pack(Pages.record_type, 3) + b"abc", FRAME.pack(Pages.record_type, 20) + bytes(20)])
def test_pages_that_cannot_be_are_refused(hostile: bytes) -> None:
    [found] = memory_of(hostile).private.values()
    with pytest.raises(ArchiveError):
        list(found)
