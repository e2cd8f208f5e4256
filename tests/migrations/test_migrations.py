"""The migrations make what the tables say, from every revision, and keep a copy of what was."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import AsyncExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from crd.catalog import upgrade as upgrade_module
from crd.catalog.catalog import Catalog
from crd.catalog.schema import metadata
from crd.catalog.session import backend_of
from crd.catalog.upgrade import HEAD, migrations
from crd.errors import CatalogError, CatalogOutOfDate

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


async def open_once(path: Path) -> None:
    async with await Catalog.open(f"sqlite:///{path}", "here"):
        pass


def configuration() -> Config:
    found = Config()
    found.set_main_option("script_location", str(migrations()))
    return found


REVISIONS = [script.revision for script in ScriptDirectory.from_config(configuration()).walk_revisions()]


def differences(connection: Connection) -> list[object]:
    return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)


def migrate(connection: Connection, revision: str) -> None:
    to = configuration()
    to.attributes["connection"] = connection
    command.upgrade(to, revision)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/catalog.db"
    url: str = request.getfixturevalue("database_url")
    return url


async def test_a_new_catalog_equals_the_tables(url: str) -> None:
    async with await Catalog.open(url, "here") as catalog:
        assert await catalog._database.read(differences) == []
        assert await catalog._database.read(stamp) == HEAD


@pytest.mark.parametrize("revision", REVISIONS)
async def test_from_every_revision_migrations_make_what_the_tables_say(url: str, revision: str) -> None:
    backend = backend_of(make_url(url))
    await backend.write(partial(migrate, revision=revision))
    assert await backend.read(stamp) == revision
    await backend.close()
    async with await Catalog.open(url, "here") as catalog:
        assert await catalog._database.read(differences) == []
        assert await catalog._database.read(stamp) == HEAD


async def test_two_daemons_that_begin_with_a_catalog_make_it_once(url: str) -> None:
    async with AsyncExitStack() as stack:
        catalogs = await asyncio.gather(*(Catalog.open(url, name) for name in ("one", "other")))
        for catalog in catalogs:
            await stack.enter_async_context(catalog)
            assert await catalog._database.read(stamp) == HEAD


def test_the_newest_revision_is_the_one_that_is_looked_for() -> None:
    scripts = ScriptDirectory.from_config(configuration())
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


async def test_a_foreign_database_stays_as_it_is_to_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "recipes.db"
    with sqlite3.connect(path) as other:
        other.execute("create table recipes(name)")
        other.execute("create table alembic_version(version_num)")
    other.close()
    path.chmod(0o644)
    before = path.read_bytes()
    with pytest.raises(CatalogOutOfDate):
        await open_once(path)
    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o644
    assert [found.name for found in tmp_path.iterdir()] == ["recipes.db"]


async def test_an_older_catalog_is_copied_and_brought_up_to_date(tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were one more revision than there is."""
    path = tmp_path / "catalog.db"
    await open_once(path)
    shutil.copytree(migrations(), tmp_path / "migrations")
    (tmp_path / "migrations" / "versions" / "20991231_second.py").write_text(textwrap.dedent(f"""
        from alembic import op
        import sqlalchemy as sa
        revision, down_revision, branch_labels, depends_on = "20991231_second", "{HEAD}", None, None
        def upgrade():
            op.add_column("images", sa.Column("colour", sa.Text))
    """))
    monkeypatch.setattr(upgrade_module, "migrations", lambda: tmp_path / "migrations")
    monkeypatch.setattr(upgrade_module, "HEAD", "20991231_second")
    await open_once(path)
    copy = tmp_path / f"catalog.db.{HEAD}.bak"
    assert copy.stat().st_mode & 0o777 == 0o600
    assert (revision_of(copy), revision_of(path)) == (HEAD, "20991231_second")


async def test_an_upgrade_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "catalog.db"
    await open_once(path)
    shutil.copytree(migrations(), tmp_path / "migrations")
    (tmp_path / "migrations" / "versions" / "20991231_second.py").write_text(textwrap.dedent(f"""
        from alembic import op
        revision, down_revision, branch_labels, depends_on = "20991231_second", "{HEAD}", None, None
        def upgrade():
            op.drop_table("holds")
            op.execute("INSERT INTO nowhere VALUES (1)")
    """))
    monkeypatch.setattr(upgrade_module, "migrations", lambda: tmp_path / "migrations")
    monkeypatch.setattr(upgrade_module, "HEAD", "20991231_second")
    with pytest.raises(CatalogError):
        await open_once(path)
    assert revision_of(path) == HEAD
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM holds").fetchone() == (0,)


def test_alembic_is_loaded_only_when_there_is_something_to_migrate(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import asyncio, sys
        from crd.catalog.catalog import Catalog
        async def main():
            async with await Catalog.open(sys.argv[1], "here"):
                print("alembic" in sys.modules)
        asyncio.run(main())
    """)
    path = tmp_path / "catalog.db"
    for before, expected in (("nothing", "False"), ("new", "False"), ("older", "True")):
        if before == "older":
            path.unlink()
            engine = create_engine(f"sqlite:///{path}")
            with engine.begin() as connection:
                migrate(connection, REVISIONS[-1])
            engine.dispose()
        seen = subprocess.run([sys.executable, "-c", program, f"sqlite:///{path}"],
                              capture_output=True, text=True, check=True)
        assert seen.stdout.strip() == expected, before


def stamp(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def revision_of(path: Path) -> str:
    with closing(sqlite3.connect(path)) as database:
        return str(database.execute("SELECT version_num FROM alembic_version").fetchone()[0])
