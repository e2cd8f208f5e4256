"""The catalog: all verbs over one database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.catalog.checkpoints import Checkpoints
from crd.catalog.images import Images
from crd.catalog.requests import Requests
from crd.catalog.session import Database, open_database
from crd.catalog.targets import Targets

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class Catalog:
    """An open catalog: ``images``, ``checkpoints``, ``targets``, ``requests``.  An async context manager."""

    def __init__(self, database: Database) -> None:
        """Use an open database; ``open`` is the way to one."""
        self._database = database
        self.images = Images(database)
        self.checkpoints = Checkpoints(database)
        self.targets = Targets(database)
        self.requests = Requests(database)

    @classmethod
    async def open(cls, url: str) -> Self:
        """Open a catalog, made or brought up to date if need be; raises as ``open_database``."""
        return cls(await open_database(url))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self._database.close()
