"""Pages by their content: keyed hashes of 16 bytes, and an index of the pages that are known.

A hash is keyed BLAKE3 of NH of the page, both under keys that BLAKE3 derives from 32 secret bytes.  NH ("UMAC: Fast and
Secure Message Authentication", CRYPTO 1999) takes page and key as 32-bit words m and k, pass p of its four passes
shifts the key by p pairs, and each gives the sum, modulo 2^64, of

    (m[2i] + k[2i+2p] mod 2^32) * (m[2i+1] + k[2i+2p+1] mod 2^32)

Two different pages agree in all four with a probability of at most 2^-128 over the key: let i be the last pair in which
they differ.  In pass p that pair meets key words that the passes before have met only with pairs behind it, which are
the same in both pages; given all other key words, at most one in 2^32 lets the sums agree (UMAC, theorem 4.2).
BLAKE3 with a key of its own is a pseudorandom function of the result, so hashes that somebody sees say nothing of the
key of NH.  Whoever does not know the key, and makes up q pages, has a chance of q^2 / 2^128 that any two of them have
the same hash, as with an ideal hash of that length, be it that he is told each time whether a page was known.

A target makes up its pages and never sees a key: so no page of it can be passed off as another, which may be of a task
with more rights.  Whoever can read the archive knows the keys in it, though, and could make such pages; so nothing but
what a target may do rests on these hashes.  What guards the archive are the unkeyed sums of what is stored
(``crd.archive.pack``), which the digest of an image covers.

That takes a quarter of the time of BLAKE3 of the pages, which was as long as a quarter of their compression.
"""

from __future__ import annotations

import secrets
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from crd.errors import BlobCorrupt
from crd.native.check import call
from crd.native.ffi import ffi, lib
from crd.native.memory import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

HASH_BYTES = 16
SECRET_BYTES = 32
INDEX_PAGES = 1 << 20
"""4 GiB of pages, in 48 MiB."""
_KEY_BYTES = PAGE_BYTES + 3 * 8 + 32
_CONTEXT = "crd 2026 page hashes"


class PageKey:
    """What pages are hashed by."""

    def __init__(self, secret: bytes | None = None) -> None:
        """Derive the key from 32 bytes; random ones if None."""
        self.secret = secrets.token_bytes(SECRET_BYTES) if secret is None else secret
        self.derived = blake3(self.secret, derive_key_context=_CONTEXT).digest(length=_KEY_BYTES)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PageKey) and self.secret == other.secret

    def __hash__(self) -> int:
        return hash(self.secret)

    def hashes(self, pages: memoryview | bytes | bytearray) -> bytearray:
        """Return the hash of each whole page, one after the other."""
        n = memoryview(pages).nbytes // PAGE_BYTES
        hashes = bytearray(n * HASH_BYTES)
        lib.crd_pages_hash(ffi.from_buffer(pages), n, ffi.from_buffer(self.derived), ffi.from_buffer(hashes))
        return hashes


@dataclass(frozen=True, slots=True)
class Indexed:
    """What an index says of pages.

    Attributes:
        numbers: u64 each, in their order.
        hashes: 16 bytes of each, in their order.
        fresh_hashes: 16 bytes of each that was not known.
    """

    numbers: array[int]
    hashes: bytearray
    fresh_hashes: memoryview


class PageIndex:
    """Numbers of pages by their content: 48 to 96 bytes a page.  One thread at a time; the GIL is released."""

    def __init__(self, key: PageKey, limit: int = INDEX_PAGES) -> None:
        """Know no page, and never more than that many: of those that come later, equal ones go unseen."""
        self.key = key
        self._index = ffi.gc(lib.crd_page_index_new(limit), lib.crd_page_index_free)
        if not self._index:
            raise MemoryError

    def learn(self, hashes: bytes | bytearray | memoryview, numbers: array[int]) -> None:
        """Take in pages by their hashes, under the same key; of equal ones the first counts.

        Args:
            hashes: 16 bytes a page.
            numbers: of each, u64.

        Raises:
            NativeError: ENOMEM.
        """
        if memoryview(hashes).nbytes != len(numbers) * HASH_BYTES:
            raise ValueError("as many hashes as numbers, please")
        call(lib.crd_page_index_learn, self._index, ffi.from_buffer(hashes),
             ffi.from_buffer("uint64_t[]", numbers), len(numbers))

    def add(self, pages: memoryview | bytearray, next_number: int) -> Indexed:
        """Hash pages and look them up; those that are not known get the next numbers, and move to the front.

        Raises:
            NativeError: ENOMEM.
        """
        n = memoryview(pages).nbytes // PAGE_BYTES
        hashes, fresh_hashes, numbers = bytearray(n * HASH_BYTES), bytearray(n * HASH_BYTES), array("Q", bytes(8 * n))
        n_fresh = ffi.new("size_t *")
        call(lib.crd_page_index_add, self._index, ffi.from_buffer(pages), n, ffi.from_buffer(self.key.derived),
             next_number, ffi.from_buffer(hashes), ffi.from_buffer(fresh_hashes),
             ffi.from_buffer("uint64_t[]", numbers), n_fresh)
        return Indexed(numbers, hashes, memoryview(fresh_hashes)[:n_fresh[0] * HASH_BYTES])


def gathered_hashes(numbers: array[int], hashes: Mapping[int, bytes]) -> bytearray:
    """Return the hashes of pages by their numbers, from those of all pages of each pack.

    Raises:
        BlobCorrupt: a pack has not as many pages.
    """
    gathered = bytearray(len(numbers) * HASH_BYTES)
    n_packs = max(hashes, default=-1) + 1
    views = {place: ffi.from_buffer(content) for place, content in hashes.items()}
    packs = ffi.new("struct crd_pack_hashes[]", n_packs)
    for place, view in views.items():
        packs[place] = (view, len(hashes[place]) // HASH_BYTES)
    if lib.crd_page_hashes_gather(ffi.from_buffer("uint64_t[]", numbers), len(numbers), packs, n_packs,
                                  ffi.from_buffer(gathered)):
        raise BlobCorrupt("it needs more pages than a pack of it has")
    return gathered
