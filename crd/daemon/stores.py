"""The store that the settings name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.archive.keys import load_keys
from crd.archive.stores.local import LocalStore
from crd.archive.stores.sealed import SealedStore, refuse_sealed

if TYPE_CHECKING:
    from crd.archive.stores.store import Store
    from crd.settings.models import Settings


async def open_store(settings: Settings) -> Store:
    """Return where images are kept, sealed if there are keys.

    Raises:
        SettingsError, KeyMissing: the keys cannot be used, or are not those of this archive.
        ArchiveError: the store cannot be used.
    """
    keys = load_keys(settings.encryption.keys)
    store = LocalStore(settings.archive_path)
    if keys is None:
        await refuse_sealed(store)
        return store
    sealed = SealedStore(store, keys, accept_plain=settings.encryption.accept_plain)
    await sealed.prepare()
    return sealed
