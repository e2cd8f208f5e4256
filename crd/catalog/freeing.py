"""Verbs that make room, or that end something: on a full disk they have what is kept back for them."""

from __future__ import annotations

import asyncio
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from crd.errors import CatalogFull

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


def freeing(verb: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    """Carry out a verb of what has a ``_database``; if there is no room, again with some of the reserve."""
    @wraps(verb)
    async def carried_out(verbs: Any, *arguments: Any, **keywords: Any) -> T:
        while True:
            try:
                return await verb(verbs, *arguments, **keywords)
            except CatalogFull:
                reserve = verbs._database.reserve
                if not (reserve and await asyncio.to_thread(reserve.give)):
                    raise

    return carried_out
