"""Objects that somebody else wrote: refused by what they say of themselves, before much is allocated for them."""

from __future__ import annotations

import os
import struct
from array import array
from typing import Any

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from crd.archive import manifest, pack
from crd.archive.archive import Archive
from crd.archive.manifest import PACK_SHIFT
from crd.archive.names import image_key, pack_key
from crd.archive.stores.memory import MemoryStore
from crd.errors import BlobCorrupt
from crd.ids import Crid
from crd.native.memory import PAGE_BYTES
from crd.native.pages import PageKey
from tests.unit.archive.streams import read_image, record, store_image

PACK, KEY = 77, PageKey(bytes(range(32)))


def image(pages: list[int], packs: list[int] | None = None, pieces: list[int] | None = None, literals: bytes = b"",
          needed: list[int] | None = None, **head: Any) -> bytes:
    """Return an image whose sums are right, whatever it says."""
    pieces = pieces if pieces is not None else [len(literals), len(pages)]
    packs = packs or [PACK]
    if needed is None:
        needed = [sum(page >> PACK_SHIFT == place for page in pages) for place in range(len(packs))]
    made = manifest.Manifest(len(literals) + len(pages) * PAGE_BYTES, bytes(32), list(zip(packs, needed, strict=False)),
                             array("I", pieces), array("Q", pages), literals)
    first, *rest, _ = made.encode()
    names = ("magic", "image_bytes", "n_pages", "digest", "n_packs", "n_pieces", "n_literal_bytes", "a", "b", "c",
             "reserved")
    values = dict(zip(names, manifest.HEAD.unpack(first), strict=True)) | head
    data = manifest.HEAD.pack(*values.values()) + b"".join(rest)
    return data + blake3(data).digest()


def packed(*blocks: tuple[bytes, bytes]) -> bytes:
    """Return a pack whose sums are right, of blocks as they are stored and the pages they should hold."""
    entries = b"".join(pack.entry(stored) for stored, _ in blocks)
    hashes = b"".join(KEY.hashes(pages) for _, pages in blocks)
    head = pack.header(PACK, KEY)
    return head + b"".join(stored for stored, _ in blocks) + b"".join(
        pack.trailer(pack.digest_of(head, entries, hashes), entries, hashes))


def block(frame_bytes: int, *frames: bytes) -> bytes:
    return struct.pack(f"<I{len(frames)}I", frame_bytes, *map(len, frames)) + b"".join(frames)


async def refused(image_object: bytes, pack_object: bytes = b"") -> str:
    store = MemoryStore()
    async with Archive(store) as archive:
        store.contents[image_key(1)] = image_object
        store.contents[pack_key(PACK)] = pack_object
        with pytest.raises(BlobCorrupt) as caught:
            await read_image(archive, 1)
        return str(caught.value)


PAGE = b"a" * PAGE_BYTES
WHOLE = packed((block(PAGE_BYTES, zstandard.compress(PAGE)), PAGE))


async def test_what_these_make_is_an_image_indeed() -> None:
    store = MemoryStore()
    store.contents |= {image_key(1): image([0, 0], literals=b"xyz"), pack_key(PACK): WHOLE}
    async with Archive(store) as archive:
        assert await read_image(archive, 1) == b"xyz" + 2 * PAGE


@pytest.mark.parametrize("data", [
    image([0], n_packs=0),
    image([0], n_packs=1 << 31),
    image([0], n_pages=1 << 60),
    image([0], n_pages=2),
    image([0], n_pieces=5),
    image([0], n_literal_bytes=1 << 40),
    image([0], image_bytes=1),
    image([0], a=5),
    image([0], c=1 << 31),
    image([0], reserved=1),
    image([0], magic=b"CRDARCH3"),
    image([0], pieces=[1, 1]),
    image([0], pieces=[0, 2]),
    image([0, 1 << 32]),
    image([1 << 62]),
    image([5]),
    image([0], needed=[0]),
    image([0], packs=[manifest.NO_PACK]),
    image([0], needed=[1 << 63]),
])
async def test_impossible_images_are_refused(data: bytes) -> None:
    await refused(data, WHOLE)


async def test_an_older_version_is_told_as_such() -> None:
    assert "another version of crd" in await refused(b"CRDARCH3" + bytes(200))


def frame_of(content_bytes: int) -> bytes:
    """Return the start of a zstd frame that says it holds so much (RFC 8878, 3.1.1.1)."""
    return b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + content_bytes.to_bytes(8, "little") + bytes([1, 0, 0])


@pytest.mark.parametrize("stored", [
    b"",
    b"1234",
    block(0, zstandard.compress(PAGE)),
    block(PAGE_BYTES + 1, zstandard.compress(PAGE)),
    block(1 << 31, zstandard.compress(PAGE)),
    block(PAGE_BYTES, zstandard.compress(PAGE), zstandard.compress(PAGE)),
    block(PAGE_BYTES, zstandard.compress(PAGE))[:-1],
    block(PAGE_BYTES, frame_of(1 << 60)),
    block(PAGE_BYTES, frame_of(0)),
    block(PAGE_BYTES, zstandard.compress(PAGE * 2)),
    block(PAGE_BYTES, zstandard.compress(PAGE[:-1])),
    block(PAGE_BYTES, zstandard.compress(b"b" * PAGE_BYTES)),
    block(PAGE_BYTES, zstandard.compress(PAGE) + zstandard.compress(b"")),
    block(PAGE_BYTES, zstandard.compress(os.urandom(PAGE_BYTES))[:-10]),
    block(PAGE_BYTES, b"rubbish"),
])
async def test_hostile_blocks_are_refused_without_believing_them(stored: bytes) -> None:
    await refused(image([0]), packed((stored, PAGE)))


async def test_another_pack_is_not_taken_for_it() -> None:
    assert "another pack" in await refused(image([0]), pack.header(PACK + 1, KEY) + WHOLE[pack.HEADER.size:])


async def test_pages_put_there_by_somebody_who_knows_the_key_are_found_before_anything_is_restarted() -> None:
    """Hashes of pages can be matched by whoever reads the archive; here they need not even be."""
    store = MemoryStore()
    async with Archive(store) as archive:
        stored = await store_image(archive, 1, record(PAGE))
        [key] = [key for key in store.contents if key.endswith(".pack")]
        whole = store.contents[key]
        number, other = int(key.partition(".")[0], 16), block(PAGE_BYTES, zstandard.compress(b"b" * PAGE_BYTES))
        head, entries = whole[:pack.HEADER.size], pack.entry(other)
        hashes = whole[-pack.TRAILER.size - 16:-pack.TRAILER.size]
        forged = head + other + b"".join(pack.trailer(pack.digest_of(head, entries, hashes), entries, hashes))
        assert pack.parse(number, head, forged[len(head) + len(other):], len(forged)).pages == 1, "it is a pack indeed"
        store.contents[key] = forged
        with pytest.raises(BlobCorrupt, match="not those"):
            await (await archive.source(Crid(1))).verify(stored.digest)


class VastStore(MemoryStore):
    """Says that its objects are as large as one likes, and counts what is read of them."""

    asked = 0

    async def size(self, key: str) -> int:
        return 1 << 62

    async def read(self, key: str, offset: int, length: int) -> bytes:
        self.asked += length
        return self.contents[key][:length] if key in self.contents else bytes(length)


@pytest.mark.parametrize("size", [0, 1 << 30])
async def test_objects_beyond_reason_are_not_read(size: int) -> None:
    store = VastStore()
    async with Archive(store) as archive:
        store.contents[image_key(1)] = image([0], c=size)
        with pytest.raises(BlobCorrupt):
            await archive.source(Crid(1))
        assert store.asked == manifest.HEAD.size


@pytest.mark.parametrize("n_pages", [pack.PAGES_MAX + 1, 1 << 63])
def test_a_table_beyond_reason_is_not_read(n_pages: int) -> None:
    end = struct.pack("<Q", n_pages) + WHOLE[-pack.TRAILER.size + 8:]
    with pytest.raises(BlobCorrupt):
        pack.tail_bytes(end, 1 << 62)


@given(st.binary(max_size=300))
def test_no_bytes_crash_a_parser(data: bytes) -> None:
    for tried in (data, manifest.HEAD.pack(b"CRDARCH4", 0, 0, bytes(32), 1, 0, 0, 0, 0, 0, 0) + data):
        with pytest.raises(BlobCorrupt):
            manifest.decode(tried)
    with pytest.raises(BlobCorrupt):
        pack.parse(PACK, data[:48], data[48:] + bytes(pack.TRAILER.size), len(data))
