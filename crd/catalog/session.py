"""The database: opened, kept up to date, and its errors translated."""

from __future__ import annotations

import os
import sqlite3
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from crd.catalog.upgrade import upgrade
from crd.errors import CatalogBusy, CatalogError, CatalogOutOfDate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_BUSY_SECONDS = 20


class Database:
    """Connections to one database; every transaction begins by taking the write lock.

    A transaction that begins by reading and then writes fails at once under another writer, whatever the busy timeout:
    SQLite cannot turn its snapshot into the newest one.  So all begin with BEGIN IMMEDIATE.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        """Use an engine; ``open_database`` makes it."""
        self._engine = engine

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """Run a transaction: committed and durable when the context ends, undone if it raises.

        Raises:
            CatalogBusy: another program holds the lock.
            CatalogOutOfDate: the file is no catalog.
            CatalogError: anything else, such as a full disk.
        """
        try:
            async with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise _translated(error) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()


async def open_database(url: str) -> Database:
    """Open a database, made or brought up to date if need be.

    Args:
        url: of SQLAlchemy: ``sqlite+aiosqlite:////var/lib/crd/catalog.db``.

    Raises:
        CatalogOutOfDate: a newer crd wrote it, or it is no catalog.
        CatalogError: it cannot be opened.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise CatalogError(f"{url!r} is no database URL") from error
    if parsed.database and parsed.get_backend_name() == "sqlite":
        _keep_private(Path(parsed.database))
    engine = create_async_engine(parsed, connect_args={"timeout": _BUSY_SECONDS})
    _prepare(engine)
    try:
        await upgrade(engine, parsed)
    except SQLAlchemyError as error:
        await engine.dispose()
        raise _translated(error) from error
    except BaseException:
        await engine.dispose()
        raise
    return Database(engine)


def _keep_private(path: Path) -> None:
    """Make the file first, readable by nobody else."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
    except OSError as error:
        raise CatalogError(f"the catalog {path}: {error.strerror}", path=str(path)) from error


def _prepare(engine: AsyncEngine) -> None:
    """Set up every connection; sqlite3 is to begin no transactions by itself."""

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _translated(error: SQLAlchemyError) -> CatalogError:
    cause = getattr(error, "orig", None)
    text = str(cause or error)
    if isinstance(error, OperationalError) and "locked" in text:
        return CatalogBusy(hint="Try again; find who holds it with fuser catalog.db.")
    if isinstance(error, OperationalError) and "full" in text:
        return CatalogError(f"the catalog: {text}", hint="Free some space.")
    if isinstance(error, DatabaseError) and isinstance(cause, sqlite3.DatabaseError) and "not a database" in text:
        return CatalogOutOfDate("the file is no SQLite database", hint="Point catalog.url at another file.")
    return CatalogError(f"the catalog: {text}")
