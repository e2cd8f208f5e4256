"""The database: opened, kept up to date, and its errors translated."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import stat
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from crd.catalog.upgrade import upgrade
from crd.errors import CatalogBusy, CatalogError, CatalogOutOfDate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_BUSY_SECONDS = 20
_READS = "crd_reads"


class Database:
    """Connections to one database; a transaction that may write begins by taking the write lock.

    A transaction that begins by reading and then writes fails at once under another writer, whatever the busy timeout:
    SQLite cannot turn its snapshot into the newest one.  So it is BEGIN IMMEDIATE.  Within this process writers queue
    up for a lock of ours, since SQLite's own waiting is asking again after up to 100 ms.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        """Use an engine; ``open_database`` makes it."""
        self._engine = engine
        self._reader = engine.execution_options(**{_READS: True})
        self._writing = asyncio.Lock()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """Run a transaction: committed and durable when the context ends, undone if it raises.

        Raises:
            CatalogBusy: another program holds the lock.
            CatalogOutOfDate: the file is no catalog.
            CatalogError: anything else, such as a full disk.
        """
        try:
            async with self._writing, self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise _translated(error) from error

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """See one state of the database, while others may write; raises as ``begin``."""
        try:
            async with self._reader.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise _translated(error) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()


async def open_database(url: str) -> Database:
    """Open a database, made or brought up to date if need be.  What is no catalog of ours is left as it is.

    Args:
        url: of SQLAlchemy: ``sqlite+aiosqlite:////var/lib/crd/catalog.db``.

    Raises:
        CatalogOutOfDate: a newer crd wrote it, or it is no catalog.
        CatalogError: it cannot be opened.
    """
    try:
        parsed = make_url(url)
        if parsed.drivername != "sqlite+aiosqlite" or not parsed.database:
            raise CatalogError(f"{parsed.render_as_string()!r} is no database that crd can use",
                               hint="Write sqlite+aiosqlite:///PATH.")
        path = Path(parsed.database)
        with _translated_os(path):
            _make(path)  # readable by nobody else; SQLite gives its companions (-wal, -shm) the same mode
        engine = create_async_engine(parsed, connect_args={"timeout": _BUSY_SECONDS})
    except (ArgumentError, NoSuchModuleError) as error:
        raise CatalogError(f"{url!r} is no database URL", hint="Write sqlite+aiosqlite:///PATH.") from error
    _prepare(engine)
    try:
        await upgrade(engine, path)
        with _translated_os(path):
            _keep_private(path)
    except SQLAlchemyError as error:
        await engine.dispose()
        raise _translated(error) from error
    except BaseException:
        await engine.dispose()
        raise
    return Database(engine)


def _make(path: Path) -> None:
    """Make the file if it is missing."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "is no file")
    finally:
        os.close(fd)


def _keep_private(path: Path) -> None:
    """Close the files to others, whatever they were restored with; only once they are known to be ours."""
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).chmod(0o600)


@contextmanager
def _translated_os(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CatalogError(f"the catalog {path}: {error.strerror}", path=str(path)) from error


def _prepare(engine: AsyncEngine) -> None:
    """Set up every connection; sqlite3 is to begin no transactions by itself."""

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous=FULL")  # what was accepted outlives a power cut, too: 1 to 2 ms each
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        reads = connection.get_execution_options().get(_READS)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _translated(error: SQLAlchemyError) -> CatalogError:
    cause = getattr(error, "orig", None)
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # the upper bits say more than we need
    text = f"the catalog: {cause or error}"
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return CatalogBusy(hint="Try again; find who holds it with fuser catalog.db.")
    if code == sqlite3.SQLITE_NOTADB:
        return CatalogOutOfDate("the file is no SQLite database", hint="Point catalog.url at another file.")
    hints = {
        sqlite3.SQLITE_FULL: "Free some space.",
        sqlite3.SQLITE_IOERR: "The disk failed, or is full; the kernel's log says more.",
        sqlite3.SQLITE_READONLY: "Make the file and its directory writable.",
        sqlite3.SQLITE_CORRUPT: "Restore catalog.db from a backup; the images themselves are in the archive.",
    }
    return CatalogError(text, hint=hints.get(code, ""))
