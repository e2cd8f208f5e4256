"""A number of turns that may be changed while some are taken."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


class Turns:
    """So many may be inside at once; an async context manager for each of them, who come in as they have come.

    Whoever is cancelled just when it has got its turn passes it on; who leaves waits for nothing.
    """

    def __init__(self, n: int) -> None:
        """Let in ``n``."""
        self._n = n
        self._inside = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def resize(self, n: int) -> None:
        """Let in ``n`` from now on; those inside stay."""
        self._n = n
        self._let_in()

    async def __aenter__(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it had got one
                self._leave()
            raise

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        self._leave()

    def _leave(self) -> None:
        self._inside -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._inside < self._n:
            turn = self._waiting.popleft()
            if not turn.cancelled():
                turn.set_result(None)
                self._inside += 1
