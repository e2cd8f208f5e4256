"""Copies of a catalog: one file each, whatever it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.catalog.backup import back_up, restore
from crd.catalog.catalog import Catalog
from crd.ids import TargetName

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_backup_and_its_restore_leave_nothing_beside_them(tmp_path: Path) -> None:
    url, name = f"sqlite:///{tmp_path}/state/catalog.db", "100%41 of it? #1"
    (tmp_path / "state").mkdir()
    async with await Catalog.open(url, "here") as catalog:
        await catalog.targets.add(TargetName("web"), {"pid": 7})
        back_up(url, tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"state", name}
    assert restore(f"sqlite:///{tmp_path}/state/new.db", tmp_path / name) is None
    assert {path.name for path in tmp_path.iterdir()} == {"state", name}
    assert {path.name for path in (tmp_path / "state").iterdir()} == {"catalog.db", "new.db"}
    async with await Catalog.open(f"sqlite:///{tmp_path}/state/new.db", "here") as catalog:
        assert await catalog.targets.all() == {"web": {"pid": 7}}
