"""Brings a database to this version's schema: makes the tables of a new one, and migrates an older one.

Alembic, which takes as long to load as all the rest of the catalog, is loaded only where there is something to migrate.
"""

from __future__ import annotations

import asyncio
import importlib.util
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Column, MetaData, String, Table, inspect

from crd.catalog.schema import metadata
from crd.errors import CatalogOutOfDate

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from crd.catalog.backend import Backend

HEAD = "20261128_notes"
"""The newest revision in ``migrations/versions``; a test says if that is not so."""
_REVISION = Table("alembic_version", MetaData(naming_convention={"pk": "%(table_name)s_pkc"}),
                  Column("version_num", String(32), primary_key=True))
"""As alembic makes it."""


def migrations() -> Path:
    """Return where the migrations are: in the wheel as ``crd._migrations``, in a checkout beside the package."""
    package = importlib.util.find_spec("crd")
    assert package is not None  # noqa: S101
    assert package.submodule_search_locations  # noqa: S101
    inside = Path(next(iter(package.submodule_search_locations)))
    return found if (found := inside / "_migrations").is_dir() else inside.parent / "migrations"


def known_revisions() -> set[str]:
    """Return the revisions that this version of crd reads."""
    return {script.stem for script in (migrations() / "versions").glob("*.py")}


async def upgrade(backend: Backend) -> None:
    """Make the schema, or bring it up to date; an older file is copied beside itself first.

    All of it is one transaction: killed at any moment, the database is as it was.

    Raises:
        CatalogOutOfDate: a newer crd wrote it, or it is no catalog.
        CatalogError: it cannot be copied.
    """
    revision = await backend.write(_revision)
    if revision == HEAD:
        return
    if revision and revision not in known_revisions():
        raise CatalogOutOfDate(f"the catalog has revision {revision}, which this version of crd does not know",
                               hint="Install the crd that wrote it, or point catalog.url at another file.")
    if revision:
        await asyncio.to_thread(backend.back_up, revision)
    else:
        await asyncio.to_thread(backend.prepare)
    await backend.write(partial(_make_or_migrate, backend))


def _revision(connection: Connection) -> str | None:
    tables = set(inspect(connection).get_table_names())
    if "alembic_version" in tables:
        found: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        if found:
            return found
    if tables:
        raise CatalogOutOfDate(f"the database is no catalog of crd: it has tables {', '.join(sorted(tables)[:5])}",
                               hint="Point catalog.url at another file.")
    return None


def _make_or_migrate(backend: Backend, connection: Connection) -> None:
    backend.lock_schema(connection)
    if _revision(connection):  # another daemon may have made it just now
        _migrate(connection)
    else:
        metadata.create_all(connection, checkfirst=False)
        _REVISION.create(connection, checkfirst=True)
        connection.execute(_REVISION.insert().values(version_num=HEAD))


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    configuration = Config()
    configuration.set_main_option("script_location", str(migrations()))
    configuration.attributes["connection"] = connection
    command.upgrade(configuration, "head")
