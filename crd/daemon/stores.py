"""The store that the settings name."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.archive.keys import load_keys
from crd.archive.secret_files import secret_path
from crd.archive.stores.local import LocalStore
from crd.archive.stores.sealed import SealedStore, refuse_sealed
from crd.archive.stores.spooled import SpooledStore
from crd.errors import ArchiveInUse, ArchiveUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from crd.archive.stores.store import Store
    from crd.settings.models import Settings


_SPOOLED_RETRY_SECONDS = 5.0
"""Of requests; the spool goes on for ever, and nobody who reads shall wait long to hear that the store is away."""


@dataclass(frozen=True, slots=True)
class OpenStore:
    """Where images are kept, and what belongs to that.

    Attributes:
        store: sealed if there are keys.
        spool: before a store that may be away; whoever has this lets it ``run``.
        lease: renews our right to write; it ends only if that is lost.
    """

    store: Store
    spool: SpooledStore | None = None
    lease: asyncio.Task[None] | None = None


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[OpenStore]:
    """Open where images are kept.

    Raises:
        SettingsError, KeyMissing: keys or credentials cannot be used, or the keys are not those of this archive.
        ArchiveInUse: another daemon writes under our name; at the end: it does so by now.
        ArchiveError: the store cannot be used.
    """
    keys = load_keys(settings.encryption.keys)
    async with _unsealed(settings) as opened:
        if keys is None:
            await refuse_sealed(opened.store)
            yield opened
        else:
            sealed = SealedStore(opened.store, keys, accept_plain=settings.encryption.accept_plain)
            await sealed.prepare()
            yield OpenStore(sealed, opened.spool, opened.lease)


@asynccontextmanager
async def _unsealed(settings: Settings) -> AsyncIterator[OpenStore]:
    if settings.archive.store == "local":
        yield OpenStore(LocalStore(settings.archive_path))
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
    await lease.acquire()
    renewing = asyncio.create_task(lease.run(), name="lease")
    try:
        prefix = f"{writer}/objects"
        if s3.spool_size:
            store = S3Store(location, prefix, lease=lease, retry_seconds=_SPOOLED_RETRY_SECONDS)
            spool = SpooledStore(LocalStore(settings.spool_path / "objects"), store, s3.spool_size)
            await spool.open()
            await asyncio.to_thread(_bind_spool, settings.spool_path, spool)
            yield OpenStore(spool, spool, renewing)
        else:
            yield OpenStore(S3Store(location, prefix, lease=lease), None, renewing)
    finally:
        renewing.cancel()
        with suppress(asyncio.CancelledError):
            await renewing
        await lease.release()


def _bind_spool(path: Path, spool: SpooledStore) -> None:
    """Note in the spool where its objects belong.

    Raises:
        ArchiveInUse: it has some that belong elsewhere.
        ArchiveUnavailable: it cannot be noted.
    """
    note, where = path / "destination", spool.describe()
    try:
        noted = note.read_text(encoding="utf-8") if note.exists() else where
        if noted != where and spool.waiting.objects:
            raise ArchiveInUse(f"{path} holds {spool.waiting.objects} objects that belong into {noted}, not {where}",
                               hint="Go back to those settings until crctl status shows that nothing waits, or name "
                               "another s3.spool_path.")
        with open(note, "w", encoding="utf-8") as file:
            file.write(where)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ArchiveUnavailable(f"{note}: {error.strerror}", path=str(note)) from error
