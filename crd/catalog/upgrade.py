"""Brings a database to this version's schema; alembic is loaded only when there is something to do."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import inspect

from crd.errors import CatalogOutOfDate

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from crd.catalog.backend import Backend

HEAD = "20261128_scale"
"""The newest revision in ``migrations/versions``; a test says if that is not so."""


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
    async with backend.engine.connect() as connection:
        revision = await connection.run_sync(_revision)
    if revision == HEAD:
        return
    if revision and revision not in known_revisions():
        raise CatalogOutOfDate(f"the catalog has revision {revision}, which this version of crd does not know",
                               hint="Install the crd that wrote it, or point catalog.url at another file.")
    if revision:
        await asyncio.to_thread(backend.back_up, revision)
    else:
        await asyncio.to_thread(backend.prepare)
    async with backend.engine.connect() as connection:
        await connection.run_sync(_migrate, backend)


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


def _migrate(connection: Connection, backend: Backend) -> None:
    from alembic import command
    from alembic.config import Config

    backend.lock_schema(connection)
    configuration = Config()
    configuration.set_main_option("script_location", str(migrations()))
    configuration.attributes["connection"] = connection
    command.upgrade(configuration, "head")
    connection.commit()
