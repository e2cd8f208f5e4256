"""Checkpoints: every attempt, whatever came of it.

They need not outlive a power cut: what counts are the images.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from sqlalchemy import Integer, bindparam, delete, func, insert, select, update

from crd.catalog.rows import Checkpoint
from crd.catalog.schema import checkpoints, each_target
from crd.catalog.verbs import Verbs, freeing, reads, writes, writes_hastily

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import ColumnElement, Delete
    from sqlalchemy.engine import Connection

    from crd.errors import CrdError

ATTEMPTS_KEPT = 100

_FIELDS = [checkpoints.c[field.name] for field in fields(Checkpoint)]

# What each checkpoint takes is put together once: to do so each time takes longer than SQLite does.
def _dropping(of_target: ColumnElement[bool]) -> Delete:
    its = (checkpoints.c.host == bindparam("of_host"), of_target)
    oldest = select(checkpoints.c.number).where(*its).order_by(checkpoints.c.number.desc()).limit(1).offset(
        bindparam("newer", type_=Integer)).scalar_subquery()
    return delete(checkpoints).where(*its, checkpoints.c.number <= oldest, checkpoints.c.state != "running")


_DROP_OLD = _dropping(checkpoints.c.target == bindparam("of_target"))
_DROP_OLD_OF_NONE = _dropping(checkpoints.c.target.is_(None))
_START = insert(checkpoints)
_FINISH = update(checkpoints).where(checkpoints.c.number == bindparam("of_number"))


class Checkpoints(Verbs):
    """The verbs on checkpoints."""

    @writes_hastily
    def start(self, connection: Connection, target: str | None, pid: int | None, now: datetime) -> int:
        """Enter an attempt that begins; return its number.

        Of each target, and of the processes that belong to none, the last attempts stay.
        """
        connection.execute(_DROP_OLD_OF_NONE if target is None else _DROP_OLD,
                           {"of_host": self._host, "of_target": target, "newer": ATTEMPTS_KEPT - 1})
        done = connection.execute(_START, {"host": self._host, "target": target, "pid": pid, "state": "running",
                                           "started_at": now})
        return int(done.inserted_primary_key[0])  # type: ignore[index]

    @freeing
    @writes_hastily
    def finish(self, connection: Connection, number: int, state: str, now: datetime, *, crid: int | None = None,
               error: CrdError | None = None, pid: int | None = None) -> None:
        """Enter how an attempt ended: ok, failed, refused or skipped."""
        values = {"of_number": number, "state": state, "ended_at": now, "crid": crid,
                  "error": error.code if error else None, "message": error.message if error else None}
        connection.execute(_FINISH, values if pid is None else values | {"pid": pid})

    @writes_hastily
    def skip(self, connection: Connection, target: str, now: datetime, message: str) -> None:
        """Enter an attempt that was due but not made."""
        connection.execute(insert(checkpoints).values(
            host=self._host, target=target, state="skipped", started_at=now, ended_at=now, message=message))

    @freeing
    @writes
    def recover(self, connection: Connection, now: datetime) -> int:
        """Enter as failed what was running when the daemon ended; return how many."""
        done = connection.execute(
            update(checkpoints).where(checkpoints.c.host == self._host, checkpoints.c.state == "running")
            .values(state="failed", ended_at=now, error="crd.interrupted",
                    message="the daemon ended while it was being taken"))
        return int(done.rowcount)

    @reads
    def last(self, connection: Connection) -> dict[str, Checkpoint]:
        """Return the last attempt of each target."""
        names = each_target(checkpoints, self._host)
        newest = select(func.max(checkpoints.c.number)).where(
            checkpoints.c.host == self._host, checkpoints.c.target == names.c.target).scalar_subquery()
        numbers = select(newest).where(names.c.target.is_not(None))
        rows = connection.execute(select(*_FIELDS).where(checkpoints.c.number.in_(numbers)))
        return {row.target: Checkpoint(**row._mapping) for row in rows}
