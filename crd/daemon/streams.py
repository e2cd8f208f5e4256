"""Pipes between the daemon, its threads and its workers."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, TypeVar

from crd.errors import ImageSinkClosed
from crd.native.stream import widen_pipe

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType
    from typing import Any, Self

T = TypeVar("T")

CHUNK_BYTES = 1 << 20


class Pipe:
    """A pipe whose ends are closed once, at the latest with the context."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        widen_pipe(self.write_end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close_read_end()
        self.close_write_end()

    def close_read_end(self) -> None:
        """Close it, if it is open."""
        if self.read_end >= 0:
            os.close(self.read_end)
            self.read_end = -1

    def close_write_end(self) -> None:
        """Close it, if it is open: the reader finds the end."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    async def read(self) -> bytes:
        """Read some bytes in the event loop; none at the end."""
        os.set_blocking(self.read_end, False)
        loop = asyncio.get_running_loop()
        while True:
            try:
                return os.read(self.read_end, CHUNK_BYTES)
            except BlockingIOError:
                await _ready(self.read_end, loop.add_reader, loop.remove_reader)

    async def write(self, data: bytes) -> None:
        """Write all of the bytes in the event loop.

        Raises:
            ImageSinkClosed: nobody reads them.
        """
        os.set_blocking(self.write_end, False)
        loop = asyncio.get_running_loop()
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.write_end, view):]
            except BlockingIOError:
                await _ready(self.write_end, loop.add_writer, loop.remove_writer)
            except BrokenPipeError as error:
                raise ImageSinkClosed from error


async def _ready(fd: int, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
    ready = asyncio.Event()
    add(fd, ready.set)
    try:
        await ready.wait()
    finally:
        remove(fd)


async def both(engine: Coroutine[Any, Any, T], stream: Coroutine[Any, Any, object]) -> T:
    """Run the engine's side and ours, and return the engine's result.

    If one fails so does the other; raised is the error that came first, unless it only says that the other has gone.
    """
    ours, theirs = asyncio.ensure_future(stream), asyncio.ensure_future(engine)
    try:
        await asyncio.wait({ours, theirs}, return_when=asyncio.FIRST_EXCEPTION)
        if ours.done() and not isinstance(ours.exception(), ImageSinkClosed | None):
            await ours
        result = await theirs
        await ours
        return result
    finally:
        for task in (ours, theirs):
            task.cancel()
        await asyncio.gather(ours, theirs, return_exceptions=True)
