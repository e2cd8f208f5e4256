"""Catalog, archive and the counter of crids, brought together at a start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.archive.archive import Archive
from crd.archive.names import image_key
from crd.archive.stores.memory import MemoryStore
from crd.catalog.catalog import Catalog
from crd.daemon.app import App
from crd.engine.crid import CridCounter
from crd.ids import CRID_MAX, Crid
from crd.settings.models import DaemonSettings, EngineSettings, Settings
from tests.unit.archive.streams import store_image, stream

if TYPE_CHECKING:
    from pathlib import Path


async def test_only_images_have_crids(tmp_path: Path) -> None:
    """What somebody put into the archive under the name of an image gives out no crids."""
    store = MemoryStore()
    async with (await Catalog.open(f"sqlite:///{tmp_path}/catalog.db", "here") as catalog,
                Archive(store) as archive):
        await store_image(archive, 7, stream(range(10)))
        for crid in (CRID_MAX, CRID_MAX - 1, 9):
            store.contents[image_key(crid)] = b"no image"
        app = App(Settings(daemon=DaemonSettings(state_dir=tmp_path),
                           engine=EngineSettings(crid_file=tmp_path / "crid")))
        app.catalog, app.archive = catalog, archive
        await (await app._recover())()
        assert app.without_row == [7, 9, CRID_MAX - 1, CRID_MAX]
        assert CridCounter(tmp_path / "crid").next() == 8
        assert await archive.crids() == list(map(Crid, app.without_row))
