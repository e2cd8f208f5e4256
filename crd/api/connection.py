"""One connection: calls are answered one after the other, in the order in which they came."""

from __future__ import annotations

import asyncio
import logging
import select
from contextlib import aclosing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from crd.api.channel import Channel, PeerLost
from crd.api.protocol import UPGRADED, MessageBuffer, Reply, decode_call, encode
from crd.errors import BadRequest

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, Iterator

    from crd.api.access import Limits, Peer
    from crd.api.dispatch import Dispatch, More
    from crd.api.protocol import Call

logger = logging.getLogger(__name__)

_READ_BYTES = 1 << 16


class Connection:
    """A peer and the streams to it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer, limits: Limits) -> None:
        self._reader = reader
        self._writer = writer
        self._peer = peer
        self._limits = limits

    @classmethod
    async def open(cls, connected: socket.socket, peer: Peer, limits: Limits) -> Connection:
        """Take over an accepted socket."""
        reader, writer = await asyncio.open_unix_connection(sock=connected, limit=_READ_BYTES)
        writer.transport.set_write_buffer_limits(0)  # drained means: the kernel has it all
        return cls(reader, writer, peer, limits)

    async def serve(self, dispatch: Dispatch) -> None:
        """Answer calls until the peer hangs up or goes too far."""
        try:
            async with aclosing(self._messages()) as messages:
                async for message in messages:
                    call = decode_call(message)
                    await self._answer(call, dispatch)
                    if call.upgrade and call.method in UPGRADED:
                        return
        except (BadRequest, ConnectionError, TimeoutError) as error:
            logger.debug("uid %d, pid %d: hanging up: %s", self._peer.uid, self._peer.pid, error)

    async def abort(self) -> None:
        """Close the connection, whatever is under way."""
        self._writer.transport.abort()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _messages(self) -> AsyncGenerator[bytearray, None]:
        """Yield what arrives until the end.

        Raises:
            BadRequest: a message is too long, or too many wait for their answers.
            TimeoutError: a message is not whole in time, or none comes.
        """
        buffer = MessageBuffer()
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._limits.idle_seconds
        while True:
            began_before = buffer.partial
            async with asyncio.timeout_at(deadline):
                data = await self._reader.read(_READ_BYTES)
            if not data:
                return
            messages = buffer.feed(data)
            if len(messages) > self._limits.calls_pending:
                raise BadRequest(f"more than {self._limits.calls_pending} calls at once")
            for message in messages:
                yield message
            if not buffer.partial:
                deadline = clock() + self._limits.idle_seconds
            elif messages or not began_before:
                deadline = clock() + self._limits.message_seconds

    async def _answer(self, call: Call, dispatch: Dispatch) -> None:
        if call.upgrade:
            await self._send(await self._stream(call, dispatch, Channel(self._reader, self._send_slowly,
                                                                        self._limits.idle_seconds)))
        elif call.more:

            async def more(parameters: dict[str, Any]) -> None:
                await self._send(encode(Reply(parameters, continues=True)))

            await self._send(await self._stream(call, dispatch, more))
        else:
            reply = await dispatch.answer(call, self._peer, None)
            if not call.oneway:
                await self._send(reply)

    async def _stream(self, call: Call, dispatch: Dispatch, more: More | Channel) -> bytes:
        """Answer a call with several replies, as long as there is somebody to hear them; return the last."""
        loop = asyncio.get_running_loop()
        with self._hang_ups() as hang_ups:
            answering = asyncio.create_task(dispatch.answer(call, self._peer, more))

            def hung_up() -> None:
                loop.remove_reader(hang_ups)
                answering.cancel()

            loop.add_reader(hang_ups, hung_up)
            try:
                return await answering
            except asyncio.CancelledError:
                if (this := asyncio.current_task()) and this.cancelling():
                    raise
                raise PeerLost("the caller hung up") from None
            finally:
                loop.remove_reader(hang_ups)

    @contextmanager
    def _hang_ups(self) -> Iterator[int]:
        """Have a descriptor that can be read once the peer has closed its end; half closed, for writing, is no hang-up.

        epoll(7) reports EPOLLHUP even if nothing is asked for, and an epoll descriptor can itself be watched.

        Raises:
            PeerLost: the connection is closed already.
        """
        if (connected := self._writer.get_extra_info("socket").fileno()) < 0:
            raise PeerLost("the caller has hung up")
        with select.epoll() as hang_ups:
            hang_ups.register(connected, 0)
            yield hang_ups.fileno()

    async def _send(self, message: bytes) -> None:
        await self._send_within(message, self._limits.drain_seconds)

    async def _send_slowly(self, data: bytes) -> None:
        """Send what may be meant for a slow disk or a pager."""
        await self._send_within(data, self._limits.idle_seconds)

    async def _send_within(self, message: bytes, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                self._writer.write(message)
                await self._writer.drain()
        except (OSError, TimeoutError) as error:
            raise PeerLost("nobody takes the reply") from error

