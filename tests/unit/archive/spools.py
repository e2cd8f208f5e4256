"""A spool before a store, and what is done with it."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from crd.archive.stores.local import LocalStore
from crd.archive.stores.spooled import SpooledStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from crd.archive.stores.memory import MemoryStore
    from crd.archive.stores.s3 import S3Store


@asynccontextmanager
async def moving(store: SpooledStore) -> AsyncIterator[None]:
    task = asyncio.create_task(store.run())
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def opened(path: Path, far: MemoryStore | S3Store, capacity_bytes: int = 1 << 30) -> SpooledStore:
    store = SpooledStore(LocalStore(path), far, capacity_bytes)
    await store.open()
    return store


async def put(store: SpooledStore | MemoryStore, key: str, content: bytes) -> None:
    upload = await store.create(key)
    await upload.write([content])
    await upload.commit()


async def moved(store: SpooledStore) -> None:
    deadline = time.monotonic() + 300  # 99 MB past half of the requests that fail took a minute at load 19
    while store.waiting.objects:
        assert time.monotonic() < deadline, store.waiting
        await asyncio.sleep(0.01)
