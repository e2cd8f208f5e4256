"""Stores images through a spool until it is killed: prints the crid of each that was acknowledged."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from crd.archive.archive import Archive
from crd.archive.stores import spooled
from crd.archive.stores.local import LocalStore
from crd.archive.stores.s3 import S3Store
from crd.archive.stores.s3_client import Location
from crd.archive.stores.spooled import SpooledStore
from crd.ids import Crid
from tests.unit.archive.streams import store_image, stream


def pages(crid: int) -> list[int]:
    """Return what the image of a crid holds: most of it is in the one before, too."""
    return [*range(crid * 10, crid * 10 + 60), *random.Random(crid).sample(range(1000), crid * 97 % 400)]


async def main(endpoint: str, prefix: str, credentials: str, spool: str, first: int) -> None:
    """Store images and forget every third but one, for ever."""
    spooled._PAUSE_SECONDS = (0.02, 0.05)
    store = SpooledStore(LocalStore(Path(spool)), S3Store(Location("killed", prefix, endpoint, "", Path(credentials))),
                         1 << 30)
    await store.open()
    async with Archive(store) as archive:
        moving = asyncio.create_task(store.run())
        print("ready", flush=True)
        for crid in range(first, 1_000_000):
            await store_image(archive, crid, stream(pages(crid)), base=crid - 1)
            print(f"stored {crid}", flush=True)
            if crid % 3 == 0:
                print(f"forgetting {crid - 1}", flush=True)
                await archive.forget(Crid(crid - 1))
                print(f"forgotten {crid - 1}", flush=True)
        await moving


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5], int(sys.argv[5])))
