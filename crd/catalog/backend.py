"""What each kind of database does in its own way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from sqlalchemy import Executable
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

    from crd.errors import CatalogError


class Backend(Protocol):
    """A database of one kind."""

    @property
    def engine(self) -> AsyncEngine:
        """What makes connections."""

    @property
    def writing(self) -> AbstractAsyncContextManager[Any]:
        """What is entered around each transaction that may write."""

    @property
    def announcement(self) -> Executable | None:
        """What tells all who share the database of a change; None: nobody does."""

    def prepare(self) -> None:
        """Make an empty database ready for the first table; it may block."""

    def back_up(self, revision: str) -> None:
        """Keep a copy of a database that is about to be changed, where that is ours to do; it may block.

        Raises:
            CatalogError: it cannot be copied.
        """

    def lock_schema(self, connection: Connection) -> None:
        """Keep others from changing the schema until the transaction ends."""

    def opened(self) -> None:
        """Take note that the database is a catalog of ours, and up to date."""

    def translated(self, error: Exception) -> CatalogError:
        """Return what an error of the driver means."""
