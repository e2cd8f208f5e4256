"""The store behind a spool, which may be away when the daemon begins: what has to wait for it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from crd.errors import ArchiveUnavailable, CrdError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from crd.archive.archive import Archive
    from crd.daemon.stores import OpenStore

logger = logging.getLogger(__name__)

_AGAIN_SECONDS = 2.0


class Arrival:
    """Brings the daemon and its store together, at once or later; until then checkpoints go into the spool.

    Attributes:
        fault: why that cannot be; the daemon ends.
    """

    def __init__(self, opened: OpenStore, archive: Archive, settle: Callable[[], Awaitable[None]],
                 then: Callable[[], object]) -> None:
        """Wait for a store.

        Args:
            opened: the store.
            archive: what is kept there.
            settle: brings the catalog together with it.
            then: is called afterwards if that was late.
        """
        self._opened = opened
        self._archive = archive
        self._settle = settle
        self._then = then
        self.fault: CrdError | None = None

    async def begin(self) -> None:
        """Settle at once if the store is there."""
        if self._archive.is_known:
            await self._settle()
        else:
            logger.warning("starting without %s, which is away: images stay in the spool until it answers",
                           self._archive.describe(), extra={"event": "archive.begun-away"})

    async def run(self, stop: asyncio.Event) -> None:
        """Wait for the store, then move what is spooled until cancelled; a ``fault`` has the daemon stop."""
        try:
            if not self._archive.is_known:
                await self._arrive()
        except CrdError as error:
            self.fault = error
            stop.set()
            return
        if self._opened.spool:
            await self._opened.spool.run()

    async def _arrive(self) -> None:
        await self._opened.ours.wait()
        while True:
            try:
                await self._opened.prepare()
                await self._archive.arrive()
                await self._settle()
            except ArchiveUnavailable:
                await asyncio.sleep(_AGAIN_SECONDS)
            else:
                break
        logger.info("%s has arrived", self._archive.describe(), extra={"event": "archive.arrived"})
        self._then()
