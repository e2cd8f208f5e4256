"""PostgreSQL: one database that several hosts share.

What a daemon enters is of its own host, but for requests, which are for the host of the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from crd.errors import CatalogError, CatalogUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import URL, Connection

T = TypeVar("T")

CHANNEL = "crd_requests"
"""Where daemons tell each other that requests have changed."""
_SCHEMA_LOCK = 0x637264  # "crd"
_CONNECT_SECONDS = 10
_ANSWER_SECONDS = 20
"""A network that was cut tells nobody: TCP would wait for a quarter of an hour."""
_AWAY = ("08", "53300", "57P")  # connection exceptions, too many connections, operator intervention
_HINTS = {
    "25006": "catalog.url names a standby: name the primary.",
    "28P01": "Check the password in catalog.url.",
    "3D000": "Create the database: createdb NAME.",
    "42501": "Grant the role of catalog.url all rights on the database.",
    "53100": "Free some space on the server.",
}


class Postgresql:
    """A server; see ``crd.catalog.backend``."""

    def __init__(self, url: URL) -> None:
        """Use a server; nothing is asked of it yet.

        Raises:
            CatalogError: the driver is not installed.
        """
        try:
            self.sessions = create_async_engine(
                url, pool_pre_ping=True, json_deserializer=msgspec.json.decode,
                connect_args={"timeout": _CONNECT_SECONDS, "command_timeout": _ANSWER_SECONDS})
        except ModuleNotFoundError as error:
            raise CatalogError("catalog.url: asyncpg is not installed", hint="Install crd[postgresql].") from error
        self._where = f"{url.query.get('host') or url.host or 'localhost'}/{url.database}"
        self.announcement = select(func.pg_notify(CHANNEL, ""))

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Do it in the event loop, which goes on while the server works."""
        return await self.write(work)

    async def write(self, work: Callable[[Connection], T], *, is_durable: bool = True) -> T:  # noqa: ARG002  it always is
        """Do it likewise."""
        async with self.sessions.begin() as connection:
            return await connection.run_sync(work)

    async def close(self) -> None:
        """Close them."""
        await self.sessions.dispose()

    def prepare(self) -> None:
        """Nothing: the database is the administrator's."""

    def back_up(self, revision: str) -> None:
        """Nothing: so are its backups."""

    def lock_schema(self, connection: Connection) -> None:
        """Let one daemon at a time make the tables."""
        connection.execute(select(func.pg_advisory_xact_lock(_SCHEMA_LOCK)))

    def opened(self) -> None:
        """Nothing."""

    def translated(self, error: Exception) -> CatalogError:
        """Return what an error of asyncpg means; SQLSTATE as in appendix A of PostgreSQL's manual."""
        if isinstance(error, OSError) or (isinstance(error, DBAPIError) and error.connection_invalidated):
            return CatalogUnavailable(f"the catalog's server, {self._where}, does not answer: {_words(error)}",
                                      hint="Start it; crd goes on by itself. It is named by catalog.url.")
        cause = getattr(error, "orig", None)
        state = str(getattr(cause, "sqlstate", ""))
        if state.startswith(_AWAY):
            return CatalogUnavailable(f"the catalog's server, {self._where}, cannot take us: {_words(error)}",
                                      hint="Try again.")
        return CatalogError(f"the catalog: {_words(error)}", hint=_HINTS.get(state, ""))


def _words(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    return str(cause).removeprefix(f"{type(cause)}: ") or type(cause).__name__
