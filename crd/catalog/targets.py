"""Targets that were added while the daemon ran, and which targets are held."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError

from crd.catalog.schema import holds, targets
from crd.catalog.verbs import Verbs, freeing, reads, writes
from crd.errors import CatalogTargetNotFound, TargetExists

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from crd.ids import TargetName


class Targets(Verbs):
    """The verbs on targets; a definition is a JSON object, which the daemon understands."""

    @writes
    def add(self, connection: Connection, name: TargetName, definition: dict[str, Any]) -> None:
        """Add a target.

        Raises:
            TargetExists: there is one of that name.
        """
        try:
            connection.execute(insert(targets).values(host=self._host, name=name, definition=definition))
        except IntegrityError as error:
            raise TargetExists(f"there is a target {name} already", hint="Remove it first, or use another name."
                               ) from error

    @freeing
    @writes
    def remove(self, connection: Connection, name: str) -> None:
        """Remove a target that was added.

        Raises:
            CatalogTargetNotFound: there is none.
        """
        done = connection.execute(delete(targets).where(targets.c.host == self._host, targets.c.name == name))
        connection.execute(delete(holds).where(holds.c.host == self._host, holds.c.target == name))
        if not done.rowcount:
            raise CatalogTargetNotFound(f"there is no target {name} that was added",
                                        hint="Targets of the settings file are removed there.")

    @reads
    def all(self, connection: Connection) -> dict[str, dict[str, Any]]:
        """Return the definitions by name."""
        return {row.name: row.definition for row in connection.execute(
            select(targets).where(targets.c.host == self._host))}

    @freeing
    @writes
    def hold(self, connection: Connection, name: str, *, held: bool) -> None:
        """Remember whether a target is held, be it of the settings or added."""
        connection.execute(delete(holds).where(holds.c.host == self._host, holds.c.target == name))
        connection.execute(insert(holds).values(host=self._host, target=name, held=held))

    @reads
    def held(self, connection: Connection) -> dict[str, bool]:
        """Return what was said last of each target that was ever held or resumed."""
        return {row.target: row.held for row in connection.execute(
            select(holds).where(holds.c.host == self._host))}
