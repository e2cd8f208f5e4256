"""A connection that carries bytes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from crd.api.protocol import Reply, encode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_CHUNK_BYTES = 1 << 20


class PeerLost(ConnectionError):  # noqa: N818  it states the fact
    """The other end is gone, or does not take its replies."""


class Channel:
    """A connection that was upgraded: after the first reply it carries bytes, and after them the last reply.

    Who calls waits for the first reply before it sends bytes, and closes its end for writing after them.
    """

    def __init__(self, reader: asyncio.StreamReader, send: Callable[[bytes], Awaitable[None]], seconds: float) -> None:
        """Speak to a peer that may let ``seconds`` pass between two reads or writes."""
        self._reader = reader
        self._send = send
        self._seconds = seconds

    async def begin(self, parameters: dict[str, Any]) -> None:
        """Send the first reply."""
        await self.write(encode(Reply(parameters)))

    async def write(self, data: bytes) -> None:
        """Send bytes; raises PeerLost if nobody takes them."""
        await self._send(data)

    async def read(self) -> bytes:
        """Receive some bytes, none at the end.

        Raises:
            PeerLost: the peer is gone, or sends nothing.
        """
        try:
            async with asyncio.timeout(self._seconds):
                return await self._reader.read(_CHUNK_BYTES)
        except (OSError, TimeoutError) as error:
            raise PeerLost("nobody sends the rest") from error
