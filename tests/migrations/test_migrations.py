"""The migrations make what the tables say, from every revision, and keep a copy of what was."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from crd.catalog.catalog import Catalog
from crd.catalog.schema import metadata
from crd.catalog.upgrade import HEAD, migrations
from crd.errors import CatalogOutOfDate


async def open_once(path: Path) -> None:
    async with await Catalog.open(f"sqlite+aiosqlite:///{path}"):
        pass


async def test_a_new_catalog_equals_the_tables(tmp_path: Path) -> None:
    await open_once(tmp_path / "catalog.db")
    engine = create_engine(f"sqlite:///{tmp_path}/catalog.db")
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)
    engine.dispose()
    assert differences == []


def test_the_newest_revision_is_the_one_that_is_looked_for() -> None:
    configuration = Config()
    configuration.set_main_option("script_location", str(migrations()))
    scripts = ScriptDirectory.from_config(configuration)
    assert scripts.get_heads() == [HEAD]
    assert all((migrations() / "versions" / f"{script.revision}.py").exists() for script in scripts.walk_revisions())


async def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    await open_once(tmp_path / "catalog.db")
    await open_once(tmp_path / "catalog.db")
    assert not list(tmp_path.glob("*.bak"))


async def test_a_newer_catalog_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    await open_once(path)
    with sqlite3.connect(path) as database:
        database.execute("update alembic_version set version_num = '20991231_later'")
    database.close()
    with pytest.raises(CatalogOutOfDate) as refused:
        await open_once(path)
    assert "20991231_later" in refused.value.message
    with sqlite3.connect(path) as database:
        assert database.execute("select version_num from alembic_version").fetchone() == ("20991231_later",)
    database.close()
