"""Sealed objects: what is stored, and everything that can be done to it."""

from __future__ import annotations

import logging
import random

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from crd.archive.keys import Key, KeyRing
from crd.archive.stores.memory import MemoryStore
from crd.archive.stores.sealed import CHUNK_BYTES, SealedStore, refuse_sealed
from crd.errors import ArchiveError, ArchiveFull, ArchiveUnavailable, BlobCorrupt, BlobMissing, KeyMissing, NotEncrypted

HEADER, TAG = 32, 16
OLD, NEW = Key(random.Random(1).randbytes(32)), Key(random.Random(2).randbytes(32))
CONTENT = random.Random(3).randbytes(3 * CHUNK_BYTES + 1000)
EDGES = [HEADER + number * (CHUNK_BYTES + TAG) for number in range(4)]


async def put(store: SealedStore | MemoryStore, key: str, *parts: bytes) -> None:
    upload = await store.create(key)
    await upload.write(parts)
    await upload.commit()


async def sealed(content: bytes = CONTENT, name: str = "a") -> MemoryStore:
    store = MemoryStore()
    await put(SealedStore(store, KeyRing([OLD])), name, content)
    return store


async def content_of(below: MemoryStore, *keys: Key, name: str = "a", accept_plain: bool = False) -> bytes:
    store = SealedStore(below, KeyRing(keys or [OLD]), accept_plain=accept_plain)
    return await store.read(name, 0, await store.size(name))


@pytest.mark.parametrize("length", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 9_000_000])
async def test_every_length_comes_back_and_costs_little(length: int) -> None:
    content = random.Random(length).randbytes(length)
    below = await sealed(content)
    assert await content_of(below) == content
    assert len(below.contents["a.sealed"]) == HEADER + length + TAG * max(1, -(-length // CHUNK_BYTES))
    assert await SealedStore(below, KeyRing([OLD])).objects() == {"a": length}


async def test_the_format_is_what_another_program_can_open() -> None:
    """Pinned: an archive outlives the crd that wrote it."""
    stored = (await sealed(CONTENT, "name")).contents["name.sealed"]
    magic, salt, key_id, body = stored[:8], stored[8:24], stored[24:HEADER], stored[HEADER:]
    secret = random.Random(1).randbytes(32)
    assert magic == b"CRDSEAL1"
    assert key_id == blake3(secret, derive_key_context="crd 2026 key id").digest(length=8)
    cipher = AESGCM(blake3(secret + salt, derive_key_context="crd 2026 sealed object").digest())
    chunks = [body[at:at + CHUNK_BYTES + TAG] for at in range(0, len(body), CHUNK_BYTES + TAG)]
    opened = [cipher.decrypt(bytes(3) + number.to_bytes(8, "big") + b"\0", chunk, stored[:HEADER])
              for number, chunk in enumerate(chunks[:-1])]
    opened.append(cipher.decrypt(bytes(3) + (3).to_bytes(8, "big") + b"\1", chunks[-1], stored[:HEADER] + b"name"))
    assert b"".join(opened) == CONTENT


async def test_nothing_of_the_content_can_be_seen() -> None:
    below = await sealed(b"the password is swordfish; " * 10_000)
    assert b"swordfish" not in below.contents["a.sealed"]
    assert list(below.contents) == ["a.sealed"]


async def test_the_same_content_is_never_sealed_the_same_way() -> None:
    assert (await sealed()).contents != (await sealed()).contents


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2 * CHUNK_BYTES), max_size=6), st.integers(0, 4 * CHUNK_BYTES),
       st.integers(0, 4 * CHUNK_BYTES))
async def test_any_range_of_any_parts(cuts: list[int], offset: int, length: int) -> None:
    below, at, parts = MemoryStore(), 0, []
    for cut in cuts:
        parts.append(CONTENT[at:at + cut])
        at += cut
    store = SealedStore(below, KeyRing([OLD]))
    await put(store, "a", *parts)
    assert await store.read("a", offset, length) == b"".join(parts)[offset:offset + length]


async def test_every_flipped_byte_is_found() -> None:
    below = await sealed(b"x" * 100)
    whole = below.contents["a.sealed"]
    for place in range(len(whole)):
        below.contents["a.sealed"] = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:]
        with pytest.raises((BlobCorrupt, KeyMissing)):
            await content_of(below)


@pytest.mark.parametrize("place", [edge + skip for edge in EDGES for skip in (0, 1, 500)])
async def test_a_flipped_byte_in_any_chunk_is_found(place: int) -> None:
    below = await sealed()
    whole = below.contents["a.sealed"]
    below.contents["a.sealed"] = whole[:place] + bytes([whole[place] ^ 0x80]) + whole[place + 1:]
    with pytest.raises(BlobCorrupt):
        await content_of(below)


@pytest.mark.parametrize("end", [0, 1, HEADER - 1, HEADER + 1, HEADER + TAG,
                                 *(edge + skip for edge in EDGES for skip in (0, TAG - 1, TAG, TAG + 1))])
async def test_a_truncated_object_gives_out_nothing(end: int) -> None:
    below = await sealed()
    below.contents["a.sealed"] = below.contents["a.sealed"][:end]
    with pytest.raises(BlobCorrupt):
        await SealedStore(below, KeyRing([OLD])).read("a", 0, 1)


@pytest.mark.parametrize("more", [b"x", b"x" * TAG, b"x" * (CHUNK_BYTES + TAG)])
async def test_an_object_with_something_appended_gives_out_nothing(more: bytes) -> None:
    below = await sealed()
    below.contents["a.sealed"] += more
    with pytest.raises(BlobCorrupt):
        await SealedStore(below, KeyRing([OLD])).read("a", 0, 1)


async def test_a_truncation_after_the_object_was_opened_is_found() -> None:
    below = await sealed()
    store = SealedStore(below, KeyRing([OLD]))
    assert await store.read("a", 0, 1) == CONTENT[:1]
    below.contents["a.sealed"] = below.contents["a.sealed"][:EDGES[2]]
    with pytest.raises(BlobCorrupt):
        await store.read("a", 0, len(CONTENT))


async def test_chunks_swapped_within_an_object_are_found() -> None:
    below = await sealed()
    whole = below.contents["a.sealed"]
    first, second, third = EDGES[:3]
    below.contents["a.sealed"] = whole[:first] + whole[second:third] + whole[first:second] + whole[third:]
    with pytest.raises(BlobCorrupt, match="chunk 0"):
        await content_of(below)


async def test_chunks_swapped_between_objects_are_found() -> None:
    below, other = await sealed(), await sealed()
    whole, foreign = below.contents["a.sealed"], other.contents["a.sealed"]
    below.contents["a.sealed"] = whole[:EDGES[1]] + foreign[EDGES[1]:EDGES[2]] + whole[EDGES[2]:]
    with pytest.raises(BlobCorrupt, match="chunk 1"):
        await content_of(below)


async def test_an_object_under_another_name_is_found() -> None:
    below = await sealed(name="a")
    below.contents["b.sealed"] = below.contents["a.sealed"]
    with pytest.raises(BlobCorrupt):
        await content_of(below, name="b")


async def test_another_object_in_the_place_of_one_that_was_read() -> None:
    below = await sealed()
    store = SealedStore(below, KeyRing([OLD]))
    assert await store.size("a") == len(CONTENT)
    below.contents.update((await sealed(b"another")).contents)
    with pytest.raises(BlobCorrupt):
        await store.read("a", 0, 1)
    assert await store.read("a", 0, 100) == b"another"


async def test_a_missing_key_is_named() -> None:
    below = await sealed()
    with pytest.raises(KeyMissing, match=OLD.id) as missing:
        await content_of(below, NEW)
    assert missing.value.details["key_id"] == OLD.id
    assert "encryption.keys" in missing.value.hint


async def test_a_rotated_key_opens_what_it_sealed() -> None:
    below = await sealed()
    await SealedStore(below, KeyRing([OLD])).prepare()
    store = SealedStore(below, KeyRing([NEW, OLD]))
    await store.prepare()
    await put(store, "b", b"new")
    assert await content_of(below, NEW, name="b") == b"new"
    assert await content_of(below, OLD, NEW) == CONTENT
    await SealedStore(below, KeyRing([NEW])).prepare()  # the old key may go when nothing needs it any more


async def test_what_another_key_or_none_sealed_is_not_current() -> None:
    below = await sealed()
    await put(below, "plain", b"1")
    for keys in ([NEW, OLD], [NEW]):
        store = SealedStore(below, KeyRing(keys), accept_plain=True)
        assert not await store.is_current("a")
        assert not await store.is_current("plain")
    assert await SealedStore(below, KeyRing([OLD, NEW])).is_current("a")
    below.contents["a.sealed"] = below.contents["a.sealed"][:HEADER - 1]
    assert not await SealedStore(below, KeyRing([OLD])).is_current("a")


async def test_a_store_of_another_key_is_refused_and_not_touched() -> None:
    below = MemoryStore()
    await SealedStore(below, KeyRing([OLD])).prepare()
    before = dict(below.contents)
    with pytest.raises(KeyMissing, match=f"{OLD.id}.*{NEW.id}"):
        await SealedStore(below, KeyRing([NEW])).prepare()
    assert below.contents == before


async def test_prepare_is_done_once_and_shows_nothing() -> None:
    below = MemoryStore()
    store = SealedStore(below, KeyRing([OLD]))
    await store.prepare()
    before = dict(below.contents)
    await store.prepare()
    assert below.contents == before
    assert await store.objects() == {}


async def test_two_daemons_that_note_the_same_key_at_once() -> None:
    class Late(MemoryStore):
        """Another daemon notes the key between our listing and our commit."""

        async def create(self, key):
            if not self.contents:
                self.contents.update(noted.contents)
            return await super().create(key)

    noted = MemoryStore()
    await SealedStore(noted, KeyRing([OLD])).prepare()
    below = Late()
    await SealedStore(below, KeyRing([OLD])).prepare()
    assert below.contents == noted.contents


async def test_a_damaged_note_of_a_key_says_what_to_do() -> None:
    below = MemoryStore()
    await SealedStore(below, KeyRing([OLD])).prepare()
    (name, note), = below.contents.items()
    below.contents[name] = note[:-1] + bytes([note[-1] ^ 1])
    with pytest.raises(BlobCorrupt) as damaged:
        await SealedStore(below, KeyRing([OLD])).prepare()
    assert name in damaged.value.hint


async def test_a_store_that_fails_while_the_key_is_noted() -> None:
    with pytest.raises(ArchiveFull):
        await SealedStore(MemoryStore(capacity_bytes=40), KeyRing([OLD])).prepare()


async def test_sealed_objects_without_keys_are_refused() -> None:
    below = MemoryStore()
    await put(below, "a", b"plain")
    await refuse_sealed(below)
    await SealedStore(below, KeyRing([OLD])).prepare()
    with pytest.raises(KeyMissing, match=OLD.id):
        await refuse_sealed(below)
    with pytest.raises(KeyMissing, match="unknown"):
        await refuse_sealed(await sealed())


async def test_a_plain_object_is_refused_until_it_is_accepted(caplog: pytest.LogCaptureFixture) -> None:
    below = MemoryStore()
    await put(below, "a", b"smuggled in")
    with pytest.raises(NotEncrypted, match="not encrypted"):
        await content_of(below)
    assert await content_of(below, accept_plain=True) == b"smuggled in"
    with caplog.at_level(logging.WARNING):
        await SealedStore(below, KeyRing([OLD])).prepare()
    assert "accept_plain" in caplog.text


async def test_a_sealed_object_wins_over_a_plain_one_and_both_are_deleted() -> None:
    below = await sealed()
    await put(below, "a", b"plain")
    assert await content_of(below, accept_plain=True) == CONTENT
    await SealedStore(below, KeyRing([OLD])).delete("a")
    assert below.contents == {}


async def test_a_plain_object_under_the_name_of_a_sealed_one_is_refused() -> None:
    below = MemoryStore()
    await put(below, "a.sealed", b"plain" * 100)
    with pytest.raises(BlobCorrupt):
        await content_of(below, accept_plain=True)


async def test_an_upload_is_committed_once_be_it_in_vain() -> None:
    """A second commit would use the nonce of the last chunk again."""
    below = await sealed()
    upload = await SealedStore(below, KeyRing([OLD])).create("a")
    await upload.write([b"secret"])
    for _ in range(2):
        with pytest.raises(ArchiveError):
            await upload.commit()
    assert list(below.contents) == ["a.sealed"]


async def test_an_upload_that_could_not_begin_leaves_nothing() -> None:
    below = MemoryStore(capacity_bytes=10)
    with pytest.raises(ArchiveFull):
        await SealedStore(below, KeyRing([OLD])).create("a")


async def test_what_is_missing_or_fails_below_says_so() -> None:
    class Broken(MemoryStore):
        async def size(self, key):
            raise ArchiveUnavailable("the network is down")

    with pytest.raises(BlobMissing, match="nothing"):
        await content_of(MemoryStore(), name="nothing")
    with pytest.raises(ArchiveUnavailable):
        await content_of(Broken())


async def test_many_objects_are_open_at_once() -> None:
    below = MemoryStore()
    store = SealedStore(below, KeyRing([OLD]))
    for number in range(100):
        await put(store, str(number), str(number).encode())
    for number in range(100):
        assert await store.read(str(number), 0, 10) == str(number).encode()
    assert len(store._opened) <= 64
