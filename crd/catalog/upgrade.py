"""Brings a database to this version's schema; alembic is loaded only when there is something to do."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import inspect

from crd.errors import CatalogError, CatalogOutOfDate

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

HEAD = "20261128_rights"
"""The newest revision in ``migrations/versions``; a test says if that is not so."""


def migrations() -> Path:
    """Return where the migrations are: in the wheel as ``crd._migrations``, in a checkout beside the package."""
    package = importlib.util.find_spec("crd")
    assert package is not None  # noqa: S101
    assert package.submodule_search_locations  # noqa: S101
    inside = Path(next(iter(package.submodule_search_locations)))
    return found if (found := inside / "_migrations").is_dir() else inside.parent / "migrations"


async def upgrade(engine: AsyncEngine, path: Path) -> None:
    """Make the schema, or bring it up to date; an older database is copied beside itself first.

    All of it is one transaction: killed at any moment, the database is as it was.

    Raises:
        CatalogOutOfDate: a newer crd wrote it, or it is no catalog.
        CatalogError: it cannot be copied.
    """
    async with engine.connect() as connection:
        revision = await connection.run_sync(_revision)
    if revision == HEAD:
        return
    if revision and revision not in {script.stem for script in (migrations() / "versions").glob("*.py")}:
        raise CatalogOutOfDate(f"the catalog has revision {revision}, which this version of crd does not know",
                               hint="Install the crd that wrote it, or point catalog.url at another file.")
    if revision:
        await asyncio.to_thread(_back_up, path, revision)
    else:
        await asyncio.to_thread(_write_ahead, path)
    async with engine.connect() as connection:
        await connection.run_sync(_migrate)


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


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    configuration = Config()
    configuration.set_main_option("script_location", str(migrations()))
    configuration.attributes["connection"] = connection
    command.upgrade(configuration, "head")
    connection.commit()


def _write_ahead(path: Path) -> None:
    """Switch a new database to write-ahead logging, which it remembers."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=WAL")


def _back_up(path: Path, revision: str) -> None:
    """Copy a database as it is, by SQLite's own means."""
    copy = path.with_name(f"{path.name}.{revision}.bak")
    try:
        fd = os.open(copy, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as sink:
                source.backup(sink)
            os.fsync(fd)
        finally:
            os.close(fd)
    except (OSError, sqlite3.Error) as error:
        raise CatalogError(f"backing up the catalog to {copy}: {error}", path=str(copy)) from error
