"""Encryption at rest: a store over a store, in which every object is sealed.

An object ``KEY`` is stored as ``KEY.sealed``: a header (magic and version, salt, key id), then its bytes in chunks of
64 KiB, each sealed with AES-256-GCM.  The key is derived from the master key and the random salt, so that no two
objects share one; the nonce is the number of the chunk and whether it is the last (the STREAM construction of Hoang,
Reyhanitabar, Rogaway and Vizár, 2015); the header is authenticated with every chunk, the object's name with the last.
The last chunk is opened before any byte is given out: what was cut off, appended, swapped, renamed or damaged is found.

The suffix says that an object is sealed, its content cannot: an object that whoever can write to the store put there
in clear is refused, unless plain objects are accepted for the time of a change to encryption.
"""

from __future__ import annotations

import logging
import secrets
import struct
from collections import OrderedDict
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from crd.archive.keys import ID_BYTES
from crd.archive.threads import in_thread
from crd.errors import ArchiveError, BlobCorrupt, BlobMissing, KeyMissing, NotEncrypted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crd.archive.keys import KeyRing
    from crd.archive.stores.store import Part, Store, Upload

logger = logging.getLogger(__name__)

SUFFIX = ".sealed"
CHUNK_BYTES = 64 << 10
TAG_BYTES = 16
_SEALED_BYTES = CHUNK_BYTES + TAG_BYTES
_HEADER = struct.Struct(f"<8s16s{ID_BYTES}s")
_NONCE = struct.Struct(">3xQ?")
_MAGIC = b"CRDSEAL1"
_CONTEXT = "crd 2026 sealed object"
_BATCH_BYTES = 4 << 20
_OPENED_MAX = 64
_CHECK = "keycheck-"


def _unsealed_bytes(stored_bytes: int) -> int:
    """Return how many bytes a sealed object holds; negative: it is none."""
    body = stored_bytes - _HEADER.size
    chunks = max(1, -(-body // _SEALED_BYTES))
    return body - chunks * TAG_BYTES


class SealedUpload:
    """An upload that seals what it is given.  The last chunk is sealed by ``commit``, with the name."""

    def __init__(self, upload: Upload, key: str, keys: KeyRing) -> None:
        """Write into an upload; ``SealedStore.create`` makes these."""
        self._upload = upload
        self._key = key
        salt = secrets.token_bytes(16)
        self._header = _HEADER.pack(_MAGIC, salt, bytes.fromhex(keys.current.id))
        self._cipher: AESGCM | None = AESGCM(keys.current.derive(_CONTEXT, salt))
        self._pending = b""
        self._chunks = 0

    async def begin(self) -> None:
        """Write the header."""
        await self._upload.write([self._header])

    async def write(self, parts: Sequence[Part]) -> None:
        """Seal and append the parts, in bounded memory."""
        for batch in _batches(parts):
            if sealed := await in_thread(self._seal, batch):
                await self._upload.write([sealed])

    def _seal(self, parts: list[Part]) -> memoryview:
        """Seal all whole chunks but the last, which is the last of all for what is known by now."""
        content = memoryview(b"".join([self._pending, *parts]))
        chunks = max(0, len(content) - 1) // CHUNK_BYTES
        sealed = memoryview(bytearray(chunks * _SEALED_BYTES))
        for number in range(chunks):
            self._encrypt(content[number * CHUNK_BYTES:(number + 1) * CHUNK_BYTES], self._header, last=False,
                          into=sealed[number * _SEALED_BYTES:(number + 1) * _SEALED_BYTES])
        self._pending = bytes(content[chunks * CHUNK_BYTES:])
        return sealed

    def _encrypt(self, chunk: Part, about: bytes, *, last: bool, into: memoryview) -> None:
        if self._cipher is None:
            raise ArchiveError("the object is committed or aborted")
        number, self._chunks = self._chunks, self._chunks + 1  # first: no number is ever used twice
        self._cipher.encrypt_into(_NONCE.pack(number, last), chunk, about, into)

    async def commit(self) -> None:
        """Seal the last chunk, and make the object visible; an upload can be committed once, be it in vain."""
        sealed = memoryview(bytearray(len(self._pending) + TAG_BYTES))
        try:
            self._encrypt(self._pending, self._header + self._key.encode(), last=True, into=sealed)
            self._cipher = None
            await self._upload.write([sealed])
        except BaseException:
            await self.abort()
            raise
        await self._upload.commit()

    async def abort(self) -> None:
        """Forget what was written."""
        self._cipher = None
        self._pending = b""
        await self._upload.abort()


@dataclass(frozen=True, slots=True)
class _Opened:
    """A sealed object whose header and end were found right."""

    cipher: AESGCM
    header: bytes
    content_bytes: int

    @property
    def last(self) -> int:
        """The number of the last chunk."""
        return max(0, self.content_bytes - 1) // CHUNK_BYTES

    def decrypt(self, number: int, sealed: Part, key: str) -> bytes:
        """Open a chunk of an object."""
        last = number == self.last
        try:
            return self.cipher.decrypt(_NONCE.pack(number, last), sealed, self.header + key.encode() * last)
        except InvalidTag as error:
            raise BlobCorrupt(f"{key}: sealed chunk {number} is damaged, or was not written there by crd",
                              key=key, chunk=number) from error


class SealedStore:
    """A store whose objects are sealed; may be shared by daemons that have the same keys."""

    def __init__(self, store: Store, keys: KeyRing, *, accept_plain: bool = False) -> None:
        """Keep sealed objects in a store.

        Args:
            store: where.
            keys: the current one seals, the others open what they sealed.
            accept_plain: objects that are not sealed, from before there were keys, are read too.
        """
        self._store = store
        self._keys = keys
        self._accept_plain = accept_plain
        self._opened: OrderedDict[str, _Opened] = OrderedDict()

    async def prepare(self) -> None:
        """Check that these are keys of this store, and note the current one there.

        Raises:
            KeyMissing: there are sealed objects, and none of the keys is one that sealed here before.
            BlobCorrupt: the note on a key is damaged.
            ArchiveFull, ArchiveUnavailable: the store failed.
        """
        objects = await self._store.objects()
        known = {key.removeprefix(_CHECK).removesuffix(SUFFIX) for key in objects if key.startswith(_CHECK)}
        for key_id in sorted(known):
            if key_id in self._keys:
                await self._check_note(key_id)
            else:
                logger.warning("what was encrypted with key %s cannot be read: it is not in encryption.keys", key_id,
                               extra={"event": "archive.key-missing"})
        if known and not any(key_id in self._keys for key_id in known):
            raise KeyMissing(
                f"{self.describe()} is encrypted with {_keys(known)}; this daemon has only {_keys(self._keys.ids)}",
                key_id=min(known), hint="Put the file of that key into encryption.keys, after the new one if it is to "
                "be replaced; `crd key FILE` prints the id of one.")
        if not self._accept_plain and (plain := sum(not key.endswith(SUFFIX) for key in objects)):
            logger.warning("%d objects of %s are not encrypted and are refused; encryption.accept_plain reads them",
                           plain, self.describe(), extra={"event": "archive.not-encrypted"})
        if self._keys.current.id not in known:
            await self._note(self._keys.current.id)

    async def _check_note(self, key_id: str) -> None:
        try:
            await self.size(_CHECK + key_id)
        except BlobCorrupt as error:
            raise BlobCorrupt(error.message, **error.details, hint=f"Remove {_CHECK}{key_id}{SUFFIX}: the next start "
                              "makes it anew.") from error

    async def _note(self, key_id: str) -> None:
        try:
            await (await self.create(_CHECK + key_id)).commit()
        except ArchiveError:
            if _CHECK + key_id + SUFFIX not in await self._store.objects():  # else another daemon was first
                raise

    def describe(self) -> str:
        """Return where the objects are."""
        return self._store.describe()

    async def create(self, key: str) -> SealedUpload:
        """Begin an object, sealed with the current key."""
        upload = SealedUpload(await self._store.create(key + SUFFIX), key, self._keys)
        try:
            await upload.begin()
        except BaseException:
            await upload.abort()
            raise
        return upload

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """Read the chunks that cover the range, and open them.

        Raises:
            KeyMissing: it was sealed with a key that is not here.
            NotEncrypted: it is not sealed.
            BlobCorrupt: it is not what was written under that key.
        """
        opened = await self._open(key)
        if opened is None:
            return await self._store.read(key, offset, length)
        end = min(offset + length, opened.content_bytes)
        return await self._range(opened, key, offset, end) if offset < end else b""

    async def _range(self, opened: _Opened, key: str, offset: int, end: int) -> bytes:
        chunks = _covering(offset, end)
        sealed = await self._store.read(key + SUFFIX, _HEADER.size + chunks[0] * _SEALED_BYTES,
                                        len(chunks) * _SEALED_BYTES)
        try:
            return await in_thread(_unseal, opened, key, sealed, offset, end)
        except BlobCorrupt:
            self._opened.pop(key, None)  # perhaps somebody put another there
            raise

    async def _open(self, key: str) -> _Opened | None:
        """Check the header and the end of an object; None: it is plain, and accepted."""
        if found := self._opened.get(key):
            self._opened.move_to_end(key)
            return found
        try:
            stored_bytes = await self._store.size(key + SUFFIX)
        except BlobMissing:
            await self._store.size(key)  # raises BlobMissing itself if there is neither
            if self._accept_plain:
                return None
            raise NotEncrypted(f"{key} is not encrypted, and so not taken for one of ours", key=key,
                               hint="If it is from before encryption was turned on: encryption.accept_plain.") from None
        opened = self._header(key, await self._store.read(key + SUFFIX, 0, _HEADER.size), stored_bytes)
        await self._range(opened, key, opened.last * CHUNK_BYTES, opened.content_bytes)
        self._opened[key] = opened
        if len(self._opened) > _OPENED_MAX:
            self._opened.popitem(last=False)
        return opened

    def _header(self, key: str, header: bytes, stored_bytes: int) -> _Opened:
        content_bytes = _unsealed_bytes(stored_bytes)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC) or content_bytes < 0:
            raise BlobCorrupt(f"{key}: it is no sealed object of a version that this crd knows", key=key)
        _magic, salt, key_id = _HEADER.unpack(header)
        cipher = AESGCM(self._keys.get(key_id.hex(), key).derive(_CONTEXT, salt))
        return _Opened(cipher, header, content_bytes)

    async def size(self, key: str) -> int:
        """Return the bytes that were sealed, once the end of the object is checked; raises as ``read``."""
        opened = await self._open(key)
        return await self._store.size(key) if opened is None else opened.content_bytes

    async def is_current(self, key: str) -> bool:
        """Tell whether an object names the current key; it is not opened."""
        try:
            header = await self._store.read(key + SUFFIX, 0, _HEADER.size)
        except BlobMissing:
            return False
        return header.endswith(bytes.fromhex(self._keys.current.id)) and len(header) == _HEADER.size

    async def objects(self) -> dict[str, int]:
        """List what the store has, sealed or not, as it says; nothing is opened."""
        stored = await self._store.objects()
        plain = {key: size for key, size in stored.items() if not key.endswith(SUFFIX)}
        sealed = {key.removesuffix(SUFFIX): max(0, _unsealed_bytes(size)) for key, size in stored.items()
                  if key.endswith(SUFFIX) and not key.startswith(_CHECK)}
        return dict(sorted({**plain, **sealed}.items()))

    async def free_bytes(self) -> int | None:
        """See ``Store``."""
        return await self._store.free_bytes()

    async def delete(self, key: str) -> None:
        """Remove an object, sealed or not."""
        self._opened.pop(key, None)
        await self._store.delete(key + SUFFIX)
        await self._store.delete(key)

    async def clear_torn(self) -> int:
        """Remove what the store has left of unfinished uploads."""
        return await self._store.clear_torn()


async def refuse_sealed(store: Store) -> None:
    """Make sure that a store can be used without keys.

    Raises:
        KeyMissing: it has sealed objects.
        ArchiveUnavailable: the store failed.
    """
    sealed = [key for key in await store.objects() if key.endswith(SUFFIX)]
    if sealed:
        known = [key.removeprefix(_CHECK).removesuffix(SUFFIX) for key in sealed if key.startswith(_CHECK)]
        raise KeyMissing(f"{store.describe()} is encrypted ({_keys(known)}), and encryption.keys is empty",
                         hint="Name the file of the key in encryption.keys; `crd key FILE` prints the id of one.",
                         **({"key_id": min(known)} if known else {}))


def _keys(ids: set[str] | list[str]) -> str:
    return f"key {', '.join(sorted(ids))}" if ids else "an unknown key"


def _unseal(opened: _Opened, key: str, sealed: bytes, offset: int, end: int) -> bytes:
    """Open the chunks that cover a range; one that is missing fails as one that is damaged."""
    view, content = memoryview(sealed), BytesIO()  # which gives its bytes away uncopied: fresh pages are what costs
    for number, start in zip(_covering(offset, end), count(0, _SEALED_BYTES), strict=False):
        chunk, at = memoryview(opened.decrypt(number, view[start:start + _SEALED_BYTES], key)), number * CHUNK_BYTES
        content.write(chunk[max(0, offset - at):end - at])
    return content.getvalue()


def _covering(offset: int, end: int) -> range:
    """Return the numbers of the chunks that cover a range; at least one, as every object has."""
    first = offset // CHUNK_BYTES
    return range(first, max(first, (end - 1) // CHUNK_BYTES) + 1)


def _batches(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Cut parts into lists of no more than so many bytes."""
    batch: list[Part] = []
    room = _BATCH_BYTES
    for part in parts:
        view = memoryview(part)
        while view:
            batch.append(view[:room])
            view, room = view[room:], room - len(batch[-1])
            if not room:
                yield batch
                batch, room = [], _BATCH_BYTES
    if batch:
        yield batch
