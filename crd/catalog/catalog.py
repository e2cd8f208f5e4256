"""The catalog: all verbs over one database."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import delete, insert, select, text, update

from crd.catalog.checkpoints import Checkpoints
from crd.catalog.images import Images
from crd.catalog.presence import present
from crd.catalog.requests import Requests
from crd.catalog.schema import checkpoints, holds, hosts, images, requests, targets
from crd.catalog.session import Database, open_database
from crd.catalog.targets import Targets

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Self

    from sqlalchemy.engine import Connection

    from crd.clock import Clock
    from crd.reserve import Reserve


class Catalog:
    """An open catalog: ``images``, ``checkpoints``, ``targets``, ``requests``.  An async context manager."""

    def __init__(self, database: Database, host: str) -> None:
        """Use an open database; ``open`` is the way to one."""
        self._database = database
        self._host = host
        self.images = Images(database, host)
        self.checkpoints = Checkpoints(database, host)
        self.targets = Targets(database, host)
        self.requests = Requests(database, host)

    @classmethod
    async def open(cls, url: str, host: str, reserve: Reserve | None = None) -> Self:
        """Open a catalog, made or brought up to date if need be.

        Args:
            url: of the database; see ``open_database``, which also says what this raises.
            host: for which it is used: images, targets and requests are kept apart by host.
            reserve: for what makes room on a full disk.
        """
        database = await open_database(url, reserve)
        try:
            if not database.shared:
                await database.write(partial(_follow, host))
        except BaseException:
            await database.close()
            raise
        return cls(database, host)

    def present(self, clock: Clock, changed: Callable[[], object],
                ) -> AbstractAsyncContextManager[asyncio.Task[None] | None]:
        """Be present for the host as long as the context lasts; see ``presence.present``."""
        return present(self._database, self._host, clock, changed)

    async def hosts(self) -> dict[str, datetime]:
        """Return the hosts whose daemons share the catalog, and when each was last heard of."""
        if not self._database.shared:
            return {}
        return await self._database.read(
            lambda connection: {row.host: row.seen_at
                                for row in connection.execute(select(hosts).order_by(hosts.c.host))})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self._database.close()


def _follow(host: str, connection: Connection) -> None:
    """Have a catalog that is of one host follow it when it gets another name."""
    if connection.execute(select(hosts.c.host).where(hosts.c.host == host)).first():
        return
    connection.execute(text("PRAGMA defer_foreign_keys=ON"))  # until the transaction ends
    for table in (images, requests, checkpoints, targets, holds):
        connection.execute(update(table).values(host=host))
    connection.execute(delete(hosts))
    connection.execute(insert(hosts).values(host=host, seen_at=datetime.now(UTC)))
