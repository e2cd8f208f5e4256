"""An object on its way to S3."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from obstore.exceptions import AlreadyExistsError

from crd.archive.stores.s3_object import PART_BYTES, PARTS, PARTS_MAX, ending, part_hash, part_name
from crd.archive.threads import in_thread, to_end
from crd.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.archive.stores.s3 import S3Store
    from crd.archive.stores.store import Part

_PARTS_AT_ONCE = 4
_ATTEMPTS = 3


class S3Upload:
    """An object whose parts are put while it is written."""

    def __init__(self, store: S3Store, key: str) -> None:
        """Write an object; ``S3Store.create`` makes these."""
        self._store = store
        self._key = key
        self._id = secrets.token_bytes(16)
        self._rest = bytearray()
        self._hashes: list[bytes] = []
        self._puts: set[asyncio.Task[None]] = set()
        self._there: dict[str, int] | None = None
        self._ours: list[str] = []
        self._open = True

    async def write(self, parts: Sequence[Part]) -> None:
        """Append the parts; at most five parts of the object are in memory."""
        if not self._open:
            raise ArchiveError("the object is committed or aborted")
        for part in parts:
            view = memoryview(part)
            while view:
                if len(self._rest) == PART_BYTES:
                    await self._put_part()
                taken = view[:PART_BYTES - len(self._rest)]
                self._rest += taken
                view = view[len(taken):]

    async def _put_part(self) -> None:
        """Begin to put what is full; raises what went wrong with those before."""
        if self._there is None:
            self._there = await self._store.listed(self._key + PARTS)
        while len(self._puts) >= _PARTS_AT_ONCE:
            await self._settle(asyncio.FIRST_COMPLETED)
        content, self._rest = bytes(self._rest), bytearray()
        digest = await in_thread(part_hash, content)
        name = part_name(self._key, len(self._hashes), digest)
        self._hashes.append(digest)
        if len(self._hashes) > PARTS_MAX:
            raise ArchiveError(f"{self._key} is larger than {PARTS_MAX * PART_BYTES >> 40} TiB: none such is kept")
        if self._there.get(name) != PART_BYTES:
            self._ours.append(name)
            self._puts.add(asyncio.create_task(self._put(name, content)))

    async def _put(self, name: str, content: bytes) -> None:
        with suppress(AlreadyExistsError):  # it is what its name says: an answer was lost, or an upload cut off
            await self._store.put(name, [content])

    async def _settle(self, until: str = asyncio.ALL_COMPLETED) -> None:
        if self._puts:
            done, self._puts = await asyncio.wait(self._puts, return_when=until)
            if errors := [error for task in done if (error := task.exception())]:
                raise errors[0]

    async def commit(self) -> None:
        """Put the rest, which makes the object visible; or leave nothing, as far as the store can be reached."""
        try:
            await self._settle()
            await self._publish([bytes(self._rest), ending(self._id, self._hashes)])
        except BaseException:
            await asyncio.shield(self.abort())
            raise
        self._close()

    async def _publish(self, content: list[bytes]) -> None:
        """Create the object itself.  What fails on the way may have been done all the same: it is taken back."""
        for _ in range(_ATTEMPTS):
            putting = asyncio.ensure_future(self._store.put(self._key, content))
            try:
                await to_end(putting)
            except AlreadyExistsError as error:
                upload = await self._store.upload_of(self._key)
                if upload == self._id:  # by ourselves: an answer was lost
                    return
                if upload is not None:  # else another that was under way was given up: 409
                    raise ArchiveError(f"{self._store.describe()}/{self._key} exists already", key=self._key) from error
            except BaseException:
                await asyncio.shield(self._take_back())
                raise
            else:
                return
        raise ArchiveError(f"{self._store.describe()}/{self._key}: others create and delete it", key=self._key)

    async def _take_back(self) -> None:
        with suppress(ArchiveError):
            if await self._store.upload_of(self._key) == self._id:
                await self._store.remove([self._key])

    async def abort(self) -> None:
        """Remove what was put; if the store cannot be reached, its next ``clear_torn`` does.

        What is under way is waited for: the server may go on with a put that is given up here.  Parts stay if there is
        an object that may need them: one whose commit failed, and could not be taken back.
        """
        if not self._open:
            return
        await asyncio.gather(*self._puts, return_exceptions=True)
        with suppress(ArchiveError):
            if self._ours and await self._store.upload_of(self._key) is None:
                await self._store.remove(self._ours)
        self._close()

    def _close(self) -> None:
        self._open = False
        self._rest = bytearray()
        self._store.under_way.discard(self._key)
