"""Targets that were added while the daemon ran, and which targets are held."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError

from crd.catalog.freeing import freeing
from crd.catalog.schema import holds, targets
from crd.catalog.whole import whole
from crd.errors import CatalogError, CatalogTargetNotFound, TargetExists

if TYPE_CHECKING:
    from crd.catalog.session import Database
    from crd.ids import TargetName


@whole
class Targets:
    """The verbs on targets; a definition is a JSON object, which the daemon understands."""

    def __init__(self, database: Database, host: str) -> None:
        """Work on a database, for a host."""
        self._database = database
        self._host = host

    async def add(self, name: TargetName, definition: dict[str, Any]) -> None:
        """Add a target.

        Raises:
            TargetExists: there is one of that name.
        """
        try:
            async with self._database.begin() as connection:
                await connection.execute(insert(targets).values(host=self._host, name=name, definition=definition))
        except CatalogError as error:
            if isinstance(error.__cause__, IntegrityError):
                raise TargetExists(f"there is a target {name} already", hint="Remove it first, or use another name."
                                   ) from error
            raise

    @freeing
    async def remove(self, name: str) -> None:
        """Remove a target that was added.

        Raises:
            CatalogTargetNotFound: there is none.
        """
        async with self._database.begin() as connection:
            done = await connection.execute(delete(targets).where(targets.c.host == self._host, targets.c.name == name))
            await connection.execute(delete(holds).where(holds.c.host == self._host, holds.c.target == name))
        if not done.rowcount:
            raise CatalogTargetNotFound(f"there is no target {name} that was added",
                                        hint="Targets of the settings file are removed there.")

    async def all(self) -> dict[str, dict[str, Any]]:
        """Return the definitions by name."""
        async with self._database.read() as connection:
            return {row.name: row.definition for row in await connection.execute(
                select(targets).where(targets.c.host == self._host))}

    @freeing
    async def hold(self, name: str, *, held: bool) -> None:
        """Remember whether a target is held, be it of the settings or added."""
        async with self._database.begin() as connection:
            await connection.execute(delete(holds).where(holds.c.host == self._host, holds.c.target == name))
            await connection.execute(insert(holds).values(host=self._host, target=name, held=held))

    async def held(self) -> dict[str, bool]:
        """Return what was said last of each target that was ever held or resumed."""
        async with self._database.read() as connection:
            return {row.target: row.held for row in await connection.execute(
                select(holds).where(holds.c.host == self._host))}
