"""Checkpoints: every attempt, whatever came of it.

They need not outlive a power cut: what counts are the images.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, insert, select, update

from crd.catalog.freeing import freeing
from crd.catalog.rows import Checkpoint
from crd.catalog.schema import checkpoints, each_target
from crd.catalog.whole import whole

if TYPE_CHECKING:
    from datetime import datetime

    from crd.catalog.session import Database
    from crd.errors import CrdError

ATTEMPTS_KEPT = 100

_FIELDS = [checkpoints.c[field.name] for field in fields(Checkpoint)]


@whole
class Checkpoints:
    """The verbs on checkpoints."""

    def __init__(self, database: Database, host: str) -> None:
        """Work on a database, for a host."""
        self._database = database
        self._host = host

    async def start(self, target: str | None, pid: int | None, now: datetime) -> int:
        """Enter an attempt that begins; return its number.

        Of each target, and of the processes that belong to none, the last attempts stay.
        """
        its = (checkpoints.c.host == self._host, checkpoints.c.target == target)  # None becomes IS NULL
        oldest = select(checkpoints.c.number).where(*its).order_by(checkpoints.c.number.desc()).offset(
            ATTEMPTS_KEPT - 1).limit(1).scalar_subquery()
        async with self._database.begin(is_durable=False) as connection:
            await connection.execute(delete(checkpoints).where(
                *its, checkpoints.c.number <= oldest, checkpoints.c.state != "running"))
            done = await connection.execute(insert(checkpoints).values(
                host=self._host, target=target, pid=pid, state="running", started_at=now))
            return int(done.inserted_primary_key[0])  # type: ignore[index]

    @freeing
    async def finish(self, number: int, state: str, now: datetime, *, crid: int | None = None,
                     error: CrdError | None = None, pid: int | None = None) -> None:
        """Enter how an attempt ended: ok, failed, refused or skipped."""
        values = {"state": state, "ended_at": now, "crid": crid, "error": error.code if error else None,
                  "message": error.message if error else None}
        if pid is not None:
            values["pid"] = pid
        async with self._database.begin(is_durable=False) as connection:
            await connection.execute(update(checkpoints).where(checkpoints.c.number == number).values(values))

    async def skip(self, target: str, now: datetime, message: str) -> None:
        """Enter an attempt that was due but not made."""
        async with self._database.begin(is_durable=False) as connection:
            await connection.execute(insert(checkpoints).values(
                host=self._host, target=target, state="skipped", started_at=now, ended_at=now, message=message))

    @freeing
    async def recover(self, now: datetime) -> int:
        """Enter as failed what was running when the daemon ended; return how many."""
        async with self._database.begin() as connection:
            done = await connection.execute(
                update(checkpoints).where(checkpoints.c.host == self._host, checkpoints.c.state == "running")
                .values(state="failed", ended_at=now, error="crd.interrupted",
                        message="the daemon ended while it was being taken"))
            return int(done.rowcount)

    async def last(self) -> dict[str, Checkpoint]:
        """Return the last attempt of each target."""
        names = each_target(checkpoints, self._host)
        newest = select(func.max(checkpoints.c.number)).where(
            checkpoints.c.host == self._host, checkpoints.c.target == names.c.target).scalar_subquery()
        numbers = select(newest).where(names.c.target.is_not(None))
        async with self._database.read() as connection:
            rows = await connection.execute(select(*_FIELDS).where(checkpoints.c.number.in_(numbers)))
            return {row.target: Checkpoint(**row._mapping) for row in rows}
