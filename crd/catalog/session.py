"""The database: opened, kept up to date, its transactions, and its errors translated."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from crd.catalog.upgrade import upgrade
from crd.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.engine import URL
    from sqlalchemy.ext.asyncio import AsyncConnection

    from crd.catalog.backend import Backend
    from crd.reserve import Reserve

READS = "crd_reads"
"""The execution option of a transaction that only reads."""
HASTY = "crd_hasty"
"""The execution option of one that outlives our death, and need not outlive a power cut; SQLite saves a flush."""
_DAMAGED = "crd catalog restore puts back a backup, and crctl adopt takes in what only the archive has."
_HINT = "Write sqlite+aiosqlite:///PATH or postgresql+asyncpg://USER@HOST/DATABASE."


class Database:
    """Transactions on one database."""

    def __init__(self, backend: Backend, reserve: Reserve | None = None) -> None:
        """Use a database; ``open_database`` opens it."""
        self._backend = backend
        self.reserve = reserve
        self._reader = backend.engine.execution_options(**{READS: True})
        self._hasty = backend.engine.execution_options(**{HASTY: True})

    @asynccontextmanager
    async def begin(self, *, is_durable: bool = True) -> AsyncIterator[AsyncConnection]:
        """Run a transaction: committed when the context ends, undone if it raises.

        Args:
            is_durable: whether it outlives a power cut once the context ends; else it does when a later one does.

        Raises:
            CatalogBusy: another program holds the lock.
            CatalogUnavailable: the server does not answer.
            CatalogOutOfDate: the file is no catalog.
            CatalogFull: there is no space left.
            CatalogError: anything else.
        """
        try:
            engine = self._backend.engine if is_durable else self._hasty
            async with self._backend.writing, engine.begin() as connection:
                yield connection
        except (SQLAlchemyError, OSError) as error:
            raise self._backend.translated(error) from error

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """See one state of the database, while others may write; raises as ``begin``."""
        try:
            async with self._reader.begin() as connection:
                yield connection
        except (SQLAlchemyError, OSError) as error:
            raise self._backend.translated(error) from error
        except ValueError as error:
            raise CatalogError(f"a row of the catalog is damaged: {error}", hint=_DAMAGED) from error

    @property
    def shared(self) -> bool:
        """Whether daemons of other hosts may use it, too."""
        return self._backend.announcement is not None

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncConnection]:
        """Have a connection of one's own; raises as ``begin``."""
        try:
            async with self._backend.engine.connect() as connection:
                try:
                    yield connection
                finally:
                    await connection.invalidate()  # what it has locked goes with it
        except (SQLAlchemyError, OSError) as error:
            raise self._backend.translated(error) from error

    async def announce(self, connection: AsyncConnection) -> None:
        """Have the daemons that share the database hear of a change to requests once the transaction is committed."""
        if self._backend.announcement is not None:
            await connection.execute(self._backend.announcement)

    async def close(self) -> None:
        """Close all connections."""
        await self._backend.engine.dispose()


async def open_database(url: str, reserve: Reserve | None = None) -> Database:
    """Open a database, made or brought up to date if need be.  What is no catalog of ours is left as it is.

    Args:
        url: of SQLAlchemy: ``sqlite+aiosqlite:////var/lib/crd/catalog.db`` or
            ``postgresql+asyncpg://crd@db.example.com/crd``.
        reserve: for what makes room on a full disk.

    Raises:
        CatalogOutOfDate: a newer crd wrote it, or it is no catalog.
        CatalogUnavailable: the server does not answer.
        CatalogFull: there is no space left.
        CatalogError: it cannot be opened.
    """
    try:
        backend = _backend(make_url(url))
    except ArgumentError as error:
        raise CatalogError(f"{url!r} is no database URL", hint=_HINT) from error
    try:
        await upgrade(backend)
        backend.opened()
    except (SQLAlchemyError, OSError) as error:
        await backend.engine.dispose()
        raise backend.translated(error) from error
    except BaseException:
        await backend.engine.dispose()
        raise
    return Database(backend, reserve)


def _backend(url: URL) -> Backend:
    if url.drivername == "sqlite+aiosqlite" and url.database:
        from crd.catalog.sqlite import Sqlite

        return Sqlite(url)
    if url.drivername == "postgresql+asyncpg" and url.database:
        from crd.catalog.postgresql import Postgresql

        return Postgresql(url)
    raise CatalogError(f"{url.render_as_string()!r} is no database that crd can use", hint=_HINT)
