"""The store that the settings name."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from crd.archive.keys import load_keys
from crd.archive.secret_files import secret_path
from crd.archive.stores.local import LocalStore
from crd.archive.stores.sealed import SealedStore, refuse_sealed
from crd.archive.stores.spooled import SpooledStore
from crd.durable import flush_directory
from crd.errors import ArchiveFull, ArchiveInUse, ArchiveUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from crd.archive.stores.lease import Lease
    from crd.archive.stores.store import Store
    from crd.settings.models import Settings

    _Unsealed = tuple[Store, SpooledStore | None, asyncio.Task[None] | None, asyncio.Event]


_AGAIN_SECONDS = 2.0
_SPOOLED_RETRY_SECONDS = 5.0
"""Of requests; the spool goes on for ever, and nobody who reads shall wait long to hear that the store is away."""


@dataclass(frozen=True, slots=True)
class OpenStore:
    """Where images are kept, and what belongs to that.

    Attributes:
        store: sealed if there are keys.
        spool: before a store that may be away; whoever has this lets it ``run`` when the store is ``ours``.
        lease: takes and renews our right to write; it ends only if that is lost, or cannot be had.
        ours: whether we have that right; with a spool the store may be away when we begin.
        prepare: to be called then, before anything is moved; raises SettingsError, KeyMissing, ArchiveError.
    """

    store: Store
    spool: SpooledStore | None
    lease: asyncio.Task[None] | None
    ours: asyncio.Event
    prepare: Callable[[], Awaitable[None]]


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[OpenStore]:
    """Open where images are kept, even if that is away and its spool was used before.

    Raises:
        SettingsError, KeyMissing: keys or credentials cannot be used, or the keys are not those of this archive.
        ArchiveInUse: another daemon writes under our name; at the end: it does so by now.
        ArchiveError: the store cannot be used.
    """
    keys = load_keys(settings.encryption.keys)
    async with _unsealed(settings) as (unsealed, spool, lease, ours):
        store: Store = unsealed
        prepare: Callable[[], Awaitable[None]] = partial(refuse_sealed, unsealed)
        if keys is not None:
            store = sealed = SealedStore(unsealed, keys, accept_plain=settings.encryption.accept_plain)
            prepare = sealed.prepare
        if ours.is_set():
            await prepare()
        yield OpenStore(store, spool, lease, ours, prepare)


@asynccontextmanager
async def _unsealed(settings: Settings) -> AsyncIterator[_Unsealed]:
    ours = asyncio.Event()
    if settings.archive.store == "local":
        ours.set()
        yield LocalStore(settings.archive_path), None, None, ours
        return
    # The library behind these is of no use to who has a local archive.
    from crd.archive.stores.lease import Lease, holder_of
    from crd.archive.stores.s3 import S3Store
    from crd.archive.stores.s3_client import Location

    s3 = settings.s3
    location = Location(s3.bucket, s3.prefix, s3.endpoint, s3.region,
                        secret_path(s3.credentials, "s3.credentials") if s3.credentials else None)
    writer = s3.writer or socket.gethostname()
    lease = Lease(location, writer, holder_of(settings.daemon.state_dir))
    retry_seconds = {"retry_seconds": _SPOOLED_RETRY_SECONDS} if s3.spool_size else {}
    store = S3Store(location, f"{writer}/objects", lease=lease, **retry_seconds)
    spool = None
    if s3.spool_size:
        spool = SpooledStore(LocalStore(settings.spool_path / "objects"), store, s3.spool_size)
        await spool.open()
    try:
        await lease.acquire()
        ours.set()
    except (ArchiveFull, ArchiveUnavailable) as error:
        if spool is None or not await asyncio.to_thread(_was_used, settings.spool_path, spool):
            raise  # whoever sets this up shall see what is wrong
        spool.is_away(error)
    having = asyncio.create_task(_have(lease, ours), name="lease")
    try:
        if spool:
            await asyncio.to_thread(_bind_spool, settings.spool_path, spool)
        yield spool or store, spool, having, ours
    finally:
        having.cancel()
        with suppress(asyncio.CancelledError):
            await having
        if ours.is_set():
            await lease.release()


async def _have(lease: Lease, ours: asyncio.Event) -> None:
    """Take the lease as soon as that can be, and keep it; raises ArchiveInUse: another has it."""
    while not ours.is_set():
        await asyncio.sleep(_AGAIN_SECONDS)
        with suppress(ArchiveFull, ArchiveUnavailable):
            await lease.acquire()
            ours.set()
    await lease.run()


def _was_used(path: Path, spool: SpooledStore) -> bool:
    """Whether a daemon has had this spool, before the same store: settings that never worked are told at once."""
    try:
        return _note_of(path).read_text(encoding="utf-8") == spool.describe()
    except OSError:
        return False


def _note_of(path: Path) -> Path:
    return path / "destination"


def _bind_spool(path: Path, spool: SpooledStore) -> None:
    """Note in the spool where its objects belong.

    Raises:
        ArchiveInUse: it has some that belong elsewhere.
        ArchiveUnavailable: it cannot be noted.
    """
    note, where = _note_of(path), spool.describe()
    try:
        noted = note.read_text(encoding="utf-8") if note.exists() else ""
        if noted == where:
            return
        if noted and spool.waiting.objects:
            raise ArchiveInUse(f"{path} holds {spool.waiting.objects} objects that belong into {noted}, not {where}",
                               hint="Go back to those settings until crctl status shows that nothing waits, or name "
                               "another s3.spool_path.")
        beside = note.with_suffix(".new")
        with open(beside, "w", encoding="utf-8") as file:
            file.write(where)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(note)
        flush_directory(path)
    except OSError as error:
        raise ArchiveUnavailable(f"{note}: {error.strerror}", path=str(note)) from error
