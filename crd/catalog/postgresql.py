"""PostgreSQL: one database that several hosts share.

What a daemon enters is of its own host, but for requests, which are for the host of the image.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from crd.errors import CatalogError, CatalogUnavailable

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Connection

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
            self.engine = create_async_engine(url, pool_pre_ping=True, connect_args={
                "timeout": _CONNECT_SECONDS, "command_timeout": _ANSWER_SECONDS})
        except ModuleNotFoundError as error:
            raise CatalogError("catalog.url: asyncpg is not installed", hint="Install crd[postgresql].") from error
        self._where = f"{url.query.get('host') or url.host or 'localhost'}/{url.database}"
        self.writing = nullcontext()
        self.announcement = select(func.pg_notify(CHANNEL, ""))

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
