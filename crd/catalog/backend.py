"""What each kind of database does in its own way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Executable
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

    from crd.errors import CatalogError

T = TypeVar("T")


class Backend(Protocol):
    """A database of one kind."""

    @property
    def sessions(self) -> AsyncEngine | None:
        """What makes connections of one's own, if daemons of several hosts share the database."""

    @property
    def announcement(self) -> Executable | None:
        """What tells all who share the database of a change; None: nobody does."""

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Do what only reads, in one transaction."""

    async def write(self, work: Callable[[Connection], T], *, is_durable: bool = True) -> T:
        """Do what may write, in one transaction, which is undone if it raises.

        Args:
            work: to be done.
            is_durable: it has to outlive a power cut once this returns.
        """

    async def close(self) -> None:
        """Close all connections."""

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
