"""The database: opened, kept up to date, its transactions, and its errors translated."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from crd.catalog.upgrade import upgrade
from crd.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy.engine import URL, Connection
    from sqlalchemy.ext.asyncio import AsyncConnection

    from crd.catalog.backend import Backend
    from crd.reserve import Reserve

T = TypeVar("T")

_SQLITE = {"sqlite", "sqlite+aiosqlite"}
"""The second is how it was written when another driver was used."""
_DAMAGED = "crd catalog restore puts back a backup, and crctl adopt takes in what only the archive has."
_HINT = "Write sqlite:///PATH or postgresql+asyncpg://USER@HOST/DATABASE."


class Database:
    """Transactions on one database."""

    def __init__(self, backend: Backend, reserve: Reserve | None = None) -> None:
        """Use a database; ``open_database`` opens it."""
        self._backend = backend
        self.reserve = reserve

    async def write(self, work: Callable[[Connection], T], *, is_durable: bool = True) -> T:
        """Do something in a transaction: committed when it returns, undone if it raises.

        Args:
            work: to be done, maybe in another thread.
            is_durable: whether it outlives a power cut once this returns; else it does when a later one does.

        Raises:
            CatalogBusy: another program holds the lock.
            CatalogUnavailable: the server does not answer.
            CatalogOutOfDate: the file is no catalog.
            CatalogFull: there is no space left.
            CatalogError: anything else.
        """
        try:
            return await self._backend.write(work, is_durable=is_durable)
        except (SQLAlchemyError, OSError) as error:
            raise self._backend.translated(error) from error

    async def read(self, work: Callable[[Connection], T]) -> T:
        """See one state of the database, while others may write; raises as ``write``."""
        try:
            return await self._backend.read(work)
        except (SQLAlchemyError, OSError) as error:
            raise self._backend.translated(error) from error
        except ValueError as error:
            raise CatalogError(f"a row of the catalog is damaged: {error}", hint=_DAMAGED) from error

    @property
    def shared(self) -> bool:
        """Whether daemons of other hosts may use it, too."""
        return self._backend.sessions is not None

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncConnection]:
        """Have a connection of one's own to what is ``shared``; raises as ``write``."""
        assert self._backend.sessions is not None  # noqa: S101
        try:
            async with self._backend.sessions.connect() as connection:
                try:
                    yield connection
                finally:
                    await connection.invalidate()  # what it has locked goes with it
        except (SQLAlchemyError, OSError) as error:
            raise self._backend.translated(error) from error

    def announce(self, connection: Connection) -> None:
        """Have the daemons that share the database hear of a change to requests once the transaction is committed."""
        if self._backend.announcement is not None:
            connection.execute(self._backend.announcement)

    async def close(self) -> None:
        """Close all connections."""
        await self._backend.close()


async def open_database(url: str, reserve: Reserve | None = None) -> Database:
    """Open a database, made or brought up to date if need be.  What is no catalog of ours is left as it is.

    Args:
        url: of SQLAlchemy: ``sqlite:////var/lib/crd/catalog.db`` or
            ``postgresql+asyncpg://crd@db.example.com/crd``.
        reserve: for what makes room on a full disk.

    Raises:
        CatalogOutOfDate: a newer crd wrote it, or it is no catalog.
        CatalogUnavailable: the server does not answer.
        CatalogFull: there is no space left.
        CatalogError: it cannot be opened.
    """
    try:
        backend = backend_of(make_url(url))
    except ArgumentError as error:
        raise CatalogError(f"{url!r} is no database URL", hint=_HINT) from error
    try:
        await upgrade(backend)
        backend.opened()
    except (SQLAlchemyError, OSError) as error:
        await backend.close()
        raise backend.translated(error) from error
    except BaseException:
        await backend.close()
        raise
    return Database(backend, reserve)


def backend_of(url: URL) -> Backend:
    """Return what serves a database, which is not asked for anything yet.

    Raises:
        CatalogError: nothing does.
    """
    if url.drivername in _SQLITE and url.database:
        from crd.catalog.sqlite import Sqlite

        return Sqlite(url)
    if url.drivername == "postgresql+asyncpg" and url.database:
        from crd.catalog.postgresql import Postgresql

        return Postgresql(url)
    raise CatalogError(f"{url.render_as_string()!r} is no database that crd can use", hint=_HINT)
