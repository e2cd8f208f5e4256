"""Work in threads that is never left running behind its caller's back."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **keywords: P.kwargs) -> T:
    """Run a function in a thread, to its end.

    ``asyncio.to_thread`` leaves the thread running when it is cancelled: the descriptors and files it works on may be
    closed, and used again for something else, under its hands.  Here the cancellation waits for the function.
    """
    return await to_end(asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **keywords)))


async def to_end(work: asyncio.Future[T]) -> T:
    """Wait until work is done; a cancellation is raised only then."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        over = asyncio.get_running_loop().create_future()  # asyncio.wait takes 15 us more
        work.add_done_callback(partial(_end, over))
        try:
            await over
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return work.result()
    if not work.cancelled():
        work.exception()  # seen: it is not what the caller shall hear of
    raise cancelled


def _end(over: asyncio.Future[None], _work: asyncio.Future[Any]) -> None:
    if not over.done():
        over.set_result(None)
