"""The control socket in tests: a server with a handler of the test's, and clients that speak raw bytes."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from crd.api.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crd.api.dispatch import Handler

PATIENCE_SECONDS = 60.0


@contextmanager
def serving(path: Path, handler: Handler, **options: Any) -> Iterator[Server]:
    """Serve in a thread, for clients that block."""
    ready: Future[tuple[Server, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        server = Server(path, handler, **options)
        stop = asyncio.Event()
        await server.start()
        ready.set_result((server, asyncio.get_running_loop(), stop))
        await stop.wait()
        await server.close()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        server, loop, stop = ready.result(PATIENCE_SECONDS)
    except BaseException:
        thread.join()
        raise
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


def connect(path: Path) -> socket.socket:
    """Return a raw connection."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    client.settimeout(PATIENCE_SECONDS)
    return client


def encoded(method: str, **fields: Any) -> bytes:
    """Return a call as bytes."""
    return json.dumps({"method": method, **fields}).encode() + b"\0"


def receive(client: socket.socket, replies: int = 1) -> list[dict[str, Any]]:
    """Read that many replies."""
    data = b""
    while data.count(b"\0") < replies:
        chunk = client.recv(1 << 16)
        assert chunk, f"hung up after {data!r}"
        data += chunk
    *messages, rest = data.split(b"\0")
    assert not rest
    assert len(messages) == replies
    return [json.loads(message) for message in messages]


def hung_up(client: socket.socket) -> bytes:
    """Read until the server hangs up; return what came before."""
    data = b""
    try:
        while chunk := client.recv(1 << 16):
            data += chunk
    except ConnectionResetError:
        pass
    return data
