"""A daemon's presence in a catalog that several share: its host is its alone, and it hears when requests change."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, insert, select, text

from crd.catalog.postgresql import CHANNEL
from crd.catalog.schema import hosts
from crd.errors import CatalogError, CatalogInUse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection

    from crd.catalog.session import Database
    from crd.clock import Clock

logger = logging.getLogger(__name__)

_BEAT_SECONDS = 10.0
_RETRY_SECONDS = 2.0
_NAMESPACE = 0x637264  # of our advisory locks
_END_SECONDS = 5.0
_END_LOOK_SECONDS = 0.1
_OUR_PROCESS = text("SELECT pid, backend_start AS start FROM pg_stat_activity WHERE pid = pg_backend_pid()")
_END = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = :pid AND backend_start = :start")


class Presence:
    """Holds a session in which the server keeps a lock for us, and tells us of changes.

    The lock goes with the session: when this daemon dies, or the server does.  Then we ask for it again, and if another
    daemon has got it meanwhile it is that daemon's host, and ``run`` ends.  After a cut of the network the server may
    still have our own session from before, which we end.
    """

    def __init__(self, database: Database, host: str, clock: Clock, changed: Callable[[], object]) -> None:
        """Be present for a host; ``changed`` is called whenever requests may have changed."""
        self._database = database
        self._host = host
        self._clock = clock
        self._changed = changed
        self._former: dict[str, Any] | None = None  # pid and start time of the server's process that held our lock

    async def run(self, entered: asyncio.Future[None]) -> None:
        """Be present until the host is another daemon's.

        Args:
            entered: done when we are present for the first time; it gets the exception if we cannot be.
        """
        while True:
            try:
                await self._once(entered)
            except CatalogInUse as error:
                if entered.done():
                    logger.error("%s", error.message, extra={"event": "catalog.lost"})  # noqa: TRY400
                else:
                    entered.set_exception(error)
                return
            except CatalogError as error:
                if not entered.done():
                    entered.set_exception(error)
                    return
                logger.warning("%s", error.message, extra={"event": "catalog.away"})
            except Exception as error:  # of the driver, which the listening goes by
                if not entered.done():
                    entered.set_exception(error)
                    return
                logger.exception("the catalog's session", extra={"event": "catalog.away"})
            await asyncio.sleep(_RETRY_SECONDS)

    async def _once(self, entered: asyncio.Future[None]) -> None:
        async with self._database.session() as session:
            if not await self._lock(session):
                raise CatalogInUse(f"another daemon of host {self._host} uses this catalog",
                                   hint="Each host needs a name of its own: see hostname(1).")
            self._former = {**(await session.execute(_OUR_PROCESS)).mappings().one()}
            await session.commit()
            driver = (await session.get_raw_connection()).driver_connection
            assert driver is not None  # noqa: S101
            await driver.add_listener(CHANNEL, lambda *_: self._changed())
            while True:
                await self._beat(session)
                if not entered.done():
                    entered.set_result(None)
                self._changed()  # something may have been said while nobody listened
                await asyncio.sleep(_BEAT_SECONDS)

    async def _lock(self, session: AsyncConnection) -> bool:
        """Ask for the lock of the host; our own session from before shall not stand in the way."""
        ask = select(func.pg_try_advisory_lock(_NAMESPACE, func.hashtext(self._host)))
        locked = bool((await session.execute(ask)).scalar())
        if not locked and self._former:
            ended = (await session.execute(_END, self._former)).scalar()
            deadline = self._clock.monotonic() + _END_SECONDS
            while ended and not locked and self._clock.monotonic() < deadline:
                await asyncio.sleep(_END_LOOK_SECONDS)
                locked = bool((await session.execute(ask)).scalar())
        await session.commit()
        return locked

    async def _beat(self, session: AsyncConnection) -> None:
        await session.execute(delete(hosts).where(hosts.c.host == self._host))
        await session.execute(insert(hosts).values(host=self._host, seen_at=self._clock.now()))
        await session.commit()


@asynccontextmanager
async def present(database: Database, host: str, clock: Clock, changed: Callable[[], object],
                  ) -> AsyncIterator[asyncio.Task[None] | None]:
    """Be present in a catalog for as long as the context lasts.

    Returns:
        What ends only when the host has become another daemon's; None if the catalog is of this host alone.

    Raises:
        CatalogInUse: another daemon of this host is.
        CatalogUnavailable: the server does not answer.
    """
    if not database.shared:
        yield None
        return
    entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(Presence(database, host, clock, changed).run(entered), name="presence")
    try:
        await entered
        yield running
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
