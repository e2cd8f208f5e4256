"""A spool before a store that may be away: objects are durable in a local directory first, and are moved there later.

An upload is acknowledged when the local disk has it.  Objects are moved in the order in which they were committed, so
packs come before the images that need them; each stays in the spool until the store has it, durably.  What was under
way when a daemon was killed is moved again.  A store that does not answer is left alone for a while: who reads from it
hears so at once.

What the store holds is listed once, and then known, since nobody else writes there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from crd.archive.names import needed_first
from crd.errors import ArchiveError, ArchiveFull, ArchiveUnavailable, BlobMissing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from crd.archive.stores.store import Part, Store, Upload

logger = logging.getLogger(__name__)

_READ_BYTES = 4 << 20
_PAUSE_SECONDS = (1.0, 30.0)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is in a spool: objects that the store does not have yet, and why not if it is away."""

    objects: int
    stored_bytes: int
    error: str
    away_since: datetime | None


class SpooledUpload:
    """An upload into the spool, within its bounds."""

    def __init__(self, store: SpooledStore, upload: Upload, key: str) -> None:
        """Write into an upload; ``SpooledStore.create`` makes these."""
        self._store = store
        self._upload = upload
        self._key = key
        self._reserved = 0

    async def write(self, parts: Sequence[Part]) -> None:
        """Append the parts, if there is room for them."""
        n_bytes = sum(len(memoryview(part)) for part in parts)
        try:
            self._store.reserve(n_bytes)
            self._reserved += n_bytes
            await self._upload.write(parts)
        except BaseException:
            await asyncio.shield(self.abort())
            raise

    async def commit(self) -> None:
        """Make the object durable in the spool; the rest is the mover's."""
        try:
            await self._store.must_be_free(self._key)
            await self._upload.commit()
        except BaseException:
            await asyncio.shield(self.abort())
            raise
        self._store.spooled(self._key, self._reserved)
        self._reserved = 0

    async def abort(self) -> None:
        """Forget what was written."""
        self._store.release(self._reserved)
        self._reserved = 0
        await self._upload.abort()


class SpooledStore:
    """A store behind a spool.  ``run`` moves; without it everything stays in the spool."""

    def __init__(self, spool: Store, store: Store, capacity_bytes: int) -> None:
        """Spool objects on their way to a store.

        Args:
            spool: a local store, used by nobody else.
            store: where objects go, which nobody else writes into.
            capacity_bytes: of all that is in the spool.
        """
        self._spool = spool
        self._store = store
        self._capacity_bytes = capacity_bytes
        self._waiting: dict[str, int] = {}
        self._reserved_bytes = 0
        self._known: dict[str, int] | None = None
        self._listing = asyncio.Lock()
        self._away_until = 0.0
        self._error: ArchiveError | None = None
        self._away_since: datetime | None = None
        self._committed = asyncio.Event()
        self._moving: tuple[str, asyncio.Task[None]] | None = None
        self._torn = True

    async def open(self) -> None:
        """Find what the daemon before us left in the spool; raises ArchiveUnavailable: it cannot be read."""
        await self._spool.clear_torn()
        left = await self._spool.objects()
        self._waiting = {key: left[key] for key in sorted(left, key=needed_first)}
        self._committed.set()

    @property
    def waiting(self) -> Waiting:
        """What the store does not have yet."""
        error, since = (self._error.message, self._away_since) if self._error else ("", None)
        return Waiting(len(self._waiting), sum(self._waiting.values()), error, since)

    def describe(self) -> str:
        """Return where objects go."""
        return self._store.describe()

    def reserve(self, n_bytes: int) -> None:
        """Take room in the spool.

        Raises:
            ArchiveFull: there is none.
        """
        used = self._reserved_bytes + sum(self._waiting.values())
        if used + n_bytes > self._capacity_bytes:
            away = f", since {self._error.message}" if self._error else ""
            raise ArchiveFull(f"the spool holds {used >> 20} MiB that {self.describe()} does not have yet{away}",
                              hint="Wait until the store has taken it; s3.spool_size must hold the largest image.")
        self._reserved_bytes += n_bytes

    def release(self, n_bytes: int) -> None:
        """Give room back."""
        self._reserved_bytes -= n_bytes

    async def must_be_free(self, key: str) -> None:
        """Raises ArchiveError: there is an object under that key, as far as is known."""
        there: dict[str, int] = {}
        with suppress(ArchiveUnavailable):  # then the move finds out
            there = await self._there()
        if key in self._waiting or key in there:
            raise ArchiveError(f"{self.describe()}/{key} exists already", key=key)

    def spooled(self, key: str, n_bytes: int) -> None:
        """Take note of an object that is durable in the spool."""
        self.release(n_bytes)
        self._waiting[key] = n_bytes
        self._committed.set()

    async def create(self, key: str) -> SpooledUpload:
        """Begin an object in the spool."""
        return SpooledUpload(self, await self._spool.create(key), key)

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """Read from the spool, or from the store."""
        if key in self._waiting:
            with suppress(BlobMissing):  # it was moved just now
                return await self._spool.read(key, offset, length)
        return await self._reached(lambda: self._store.read(key, offset, length))

    async def size(self, key: str) -> int:
        """Ask the spool, or the store."""
        if key in self._waiting:
            return self._waiting[key]
        return await self._reached(lambda: self._store.size(key))

    async def is_current(self, key: str) -> bool:
        """All are kept alike."""
        return key in self._waiting or await self._reached(lambda: self._store.is_current(key))

    async def objects(self) -> dict[str, int]:
        """Return what is in either; the store is asked once."""
        return dict(sorted({**await self._there(), **self._waiting}.items()))

    async def _there(self) -> dict[str, int]:
        return self._known if self._known is not None else await self._reached(self._listed)

    async def free_bytes(self) -> int | None:
        """See ``Store``: what the spool has room for."""
        room = max(0, self._capacity_bytes - self._reserved_bytes - sum(self._waiting.values()))
        on_disk = await self._spool.free_bytes()
        return room if on_disk is None else min(room, on_disk)

    async def delete(self, key: str) -> None:
        """Remove an object from both; while it is being moved, that is given up.

        If this raises, it is where it was: last it leaves the spool, from which it is moved again.
        """
        there = await self._there()  # or nothing is removed: a part of it might be left
        size = self._waiting.pop(key, None)  # first: nothing begins to move it any more
        try:
            perhaps_moved = key in there
            if self._moving and self._moving[0] == key:
                perhaps_moved = True
                await _given_up(self._moving[1])
            if perhaps_moved:
                await self._reached(lambda: self._store.delete(key))
                there.pop(key, None)
            if size is not None:
                await self._spool.delete(key)
        except BaseException:
            if size is not None and key not in there:
                self._waiting[key] = size
                self._committed.set()
            raise

    async def clear_torn(self) -> int:
        """Clear the spool.  In the store, parts of what is still to be moved are of use: it is cleared after that."""
        self._torn = True
        return await self._spool.clear_torn()

    async def run(self) -> None:
        """Move what is spooled, as it comes, until cancelled."""
        pause = _PAUSE_SECONDS[0]
        while True:
            try:
                await self._move_all()
                pause = _PAUSE_SECONDS[0]
                await self._committed.wait()
                continue
            except ArchiveError as error:
                self._failed(error)
            except Exception:
                logger.exception("moving out of the spool", extra={"event": "archive.move-crashed"})
            await asyncio.sleep(pause)
            pause = min(2 * pause, _PAUSE_SECONDS[1])

    async def _move_all(self) -> None:
        self._committed.clear()
        while self._waiting:
            key = next(iter(self._waiting))
            self._moving = key, asyncio.create_task(self._move(key))
            try:
                await asyncio.shield(self._moving[1])
            except BlobMissing:
                if key in await self._spool.objects():
                    raise
                self._waiting.pop(key, None)
                logger.error("%s was removed from the spool behind our back",  # noqa: TRY400  no fault of the code
                             key, extra={"event": "archive.spool-lost"})
            except asyncio.CancelledError:
                if not self._moving[1].cancelled():  # we are, and not the move alone
                    await _given_up(self._moving[1])
                    raise
            else:
                self._answered()
            finally:
                self._moving = None
        if self._torn:
            await self._store.clear_torn()
            self._torn = False

    async def _move(self, key: str) -> None:
        """Move an object: it is in the store, durably, before it leaves the spool."""
        size = self._waiting[key]
        if key not in await self._listed() or not await self._same(key, size):
            upload = await self._store.create(key)
            try:
                for offset in range(0, size, _READ_BYTES):
                    await upload.write([await self._spool.read(key, offset, _READ_BYTES)])
                await upload.commit()
            except (ArchiveFull, ArchiveUnavailable):
                raise
            except ArchiveError:  # there is one: ours, if it was done although it seemed to fail
                if not await self._same(key, size):
                    raise
            finally:
                await asyncio.shield(upload.abort())
        (await self._listed())[key] = size
        await self._spool.delete(key)
        self._waiting.pop(key, None)

    async def _listed(self) -> dict[str, int]:
        """Return what the store holds, asking it although it was away."""
        async with self._listing:  # a list that is older than what was moved since must not take the place of another
            if self._known is None:
                self._known = await self._store.objects()
        return self._known

    async def _same(self, key: str, size: int) -> bool:
        """Tell whether the store has an object already: the daemon was killed before the spool was told."""
        try:
            if await self._store.size(key) != size:
                return False
            for offset in range(0, size, _READ_BYTES):
                if (await self._store.read(key, offset, _READ_BYTES)
                        != await self._spool.read(key, offset, _READ_BYTES)):
                    return False
        except BlobMissing:
            return False
        return True

    async def _reached(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the store, unless it did not answer a moment ago."""
        if self._error and time.monotonic() < self._away_until:
            raise ArchiveUnavailable(self._error.message, hint=self._error.hint)
        try:
            answer = await ask()
        except ArchiveUnavailable as error:
            self._failed(error)
            raise
        self._answered()
        return answer

    def is_away(self, error: ArchiveError) -> None:
        """Be told that the store does not answer, or takes nothing."""
        self._failed(error)

    def _failed(self, error: ArchiveError) -> None:
        if self._error is None:
            self._away_since = datetime.now(UTC)
            logger.warning("the spool takes in what the store cannot: %s", error.message,
                           extra={"event": "archive.away", "error": error.code})
        self._error = error
        if isinstance(error, ArchiveUnavailable):
            self._away_until = time.monotonic() + _PAUSE_SECONDS[1]

    def _answered(self) -> None:
        if self._error is not None:
            logger.info("the store takes objects again", extra={"event": "archive.back"})
        self._error = None


async def _given_up(move: asyncio.Task[None]) -> None:
    """Cancel a move, and wait for its end, however it ends."""
    move.cancel()
    await asyncio.wait([move])
    if not move.cancelled():
        move.exception()  # seen
