"""Verbs that are carried out whole.

A statement that is cut short by a cancellation leaves its connection in a transaction that nobody ends, and so a lock
that blocks every writer.  So a verb runs to its end, and a cancellation that came meanwhile is raised then.
"""

from __future__ import annotations

import asyncio
import inspect
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")
C = TypeVar("C", bound=type)


def whole(verbs: C) -> C:
    """Make all public coroutine methods of a class run to their end, whoever is cancelled meanwhile."""
    for name, verb in vars(verbs).items():
        if inspect.iscoroutinefunction(verb) and not name.startswith("_"):
            setattr(verbs, name, _to_its_end(verb))
    return verbs


def _to_its_end(verb: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    @wraps(verb)
    async def carried_out(*arguments: Any, **keywords: Any) -> T:
        work = asyncio.ensure_future(verb(*arguments, **keywords))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            while not work.done():
                try:
                    await asyncio.wait([work])
                except asyncio.CancelledError:
                    continue
            if not work.cancelled():
                work.exception()  # seen: what matters now is the cancellation
            raise

    return carried_out
