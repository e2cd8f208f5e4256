"""A number of turns that may be changed while some are taken."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


class Turns:
    """So many may be inside at once; an async context manager for each of them."""

    def __init__(self, n: int) -> None:
        """Let in ``n``."""
        self._n = n
        self._inside = 0
        self._changed = asyncio.Condition()

    async def resize(self, n: int) -> None:
        """Let in ``n`` from now on; those inside stay."""
        async with self._changed:
            self._n = n
            self._changed.notify_all()

    async def __aenter__(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._inside < self._n)
            self._inside += 1

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        async with self._changed:
            self._inside -= 1
            self._changed.notify()
