"""A proxy between a client and an HTTP server on loopback that does what networks and servers do on bad days."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

ERROR = (b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/xml\r\nContent-Length: 57\r\n\r\n"
         b"<Error><Code>SlowDown</Code><Message>later</Message></Er\n")


FULL = (b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: 42\r\n\r\n"
        b"<Error><Code>QuotaExceeded</Code></Error>\n")


class FaultyProxy:
    """Passes each request on, unless ``fault`` says otherwise.

    Attributes:
        fault: is told method and path of each request and returns what becomes of it: "" (nothing), "503" (an answer of
            our own, the server hears nothing), "full" (likewise: the quota is used up), "cut" (the connection ends
            before the server hears of it), "lost" (the server does it, its answer is lost), "torn" (half of the answer
            arrives), "flip" (a bit of what is sent is wrong), "away" (as if nobody were there).
        requests: what was asked for, and what became of it.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._server: asyncio.Server
        self._connections: set[asyncio.Task[None]] = set()
        self.fault: Callable[[str, str], str] = lambda _method, _path: ""
        self.requests: list[tuple[str, str, str]] = []

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._pass_on(reader, writer):
                    pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Handle one request; return whether the connection stays."""
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, _ = head.split(b"\r\n")[0].decode().split(" ")
        fault = self.fault(method, path)
        self.requests.append((method, path, fault))
        if fault == "away":
            return False
        body = await reader.readexactly(_length(head))
        if answer := {"503": ERROR, "full": FULL}.get(fault):
            writer.write(answer)
            await writer.drain()
            return True
        if fault == "cut":
            return False
        if fault == "flip" and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to, limit=1 << 20)
        try:
            to_writer.write(head + body)
            answer = await to_reader.readuntil(b"\r\n\r\n")
            content = b"" if method == "HEAD" or b" 204 " in answer[:20] else await _content(answer, to_reader)
        finally:
            to_writer.close()
        if fault == "lost":
            return False
        if fault == "torn":
            writer.write((answer + content)[:len(answer) + len(content) // 2])
            await writer.drain()
            return False
        writer.write(answer + content)
        await writer.drain()
        return True


def _length(head: bytes) -> int:
    return next((int(line.partition(b":")[2]) for line in head.lower().split(b"\r\n")
                 if line.startswith(b"content-length:")), 0)


async def _content(head: bytes, reader: asyncio.StreamReader) -> bytes:
    """Read the body of an answer, as it stands on the wire."""
    if b"transfer-encoding: chunked" not in head.lower():
        return await reader.readexactly(_length(head))
    content = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        content += line + await reader.readexactly(int(line, 16) + 2)
        if line == b"0\r\n":
            return content
