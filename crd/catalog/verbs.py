"""Verbs: what is done to a catalog, each in one transaction.

A verb is written as a plain function of a connection, so that a database which blocks (SQLite) carries it out in one
go, in one thread: to go to and fro between the event loop and a thread for each statement takes several times as long.
Who calls it awaits it.  It is carried out whole, and a cancellation that came meanwhile is raised then: a transaction
that is cut short would leave a lock that blocks every writer.
"""

from __future__ import annotations

import asyncio
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from crd.errors import CatalogFull

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sqlalchemy.engine import Connection

    from crd.catalog.session import Database

P = ParamSpec("P")
T = TypeVar("T")
V = TypeVar("V", bound="Verbs")


class Verbs:
    """Verbs on one kind of rows."""

    def __init__(self, database: Database, host: str) -> None:
        """Work on a database, for a host, which is meant where no other is named."""
        self._database = database
        self._host = host


def reads(verb: Callable[Concatenate[V, Connection, P], T]) -> Callable[Concatenate[V, P], Coroutine[Any, Any, T]]:
    """Have a verb see one state of the database; awaiting it raises what ``Database.read`` does."""
    @wraps(verb)
    async def carried_out(self: V, /, *arguments: P.args, **keywords: P.kwargs) -> T:
        return await _to_its_end(self._database.read(
            lambda connection: verb(self, connection, *arguments, **keywords)))

    return carried_out


def writes(verb: Callable[Concatenate[V, Connection, P], T]) -> Callable[Concatenate[V, P], Coroutine[Any, Any, T]]:
    """Have a verb change the database, or leave it as it is; awaiting it raises what ``Database.write`` does."""
    return _writing(verb, is_durable=True)


def writes_hastily(
        verb: Callable[Concatenate[V, Connection, P], T]) -> Callable[Concatenate[V, P], Coroutine[Any, Any, T]]:
    """Do as ``writes``, but a power cut may take back what the verb has changed."""
    return _writing(verb, is_durable=False)


def _writing(verb: Callable[Concatenate[V, Connection, P], T], *,
             is_durable: bool) -> Callable[Concatenate[V, P], Coroutine[Any, Any, T]]:
    @wraps(verb)
    async def carried_out(self: V, /, *arguments: P.args, **keywords: P.kwargs) -> T:
        return await _to_its_end(self._database.write(
            lambda connection: verb(self, connection, *arguments, **keywords), is_durable=is_durable))

    return carried_out


def freeing(verb: Callable[Concatenate[V, P], Coroutine[Any, Any, T]],
            ) -> Callable[Concatenate[V, P], Coroutine[Any, Any, T]]:
    """Have a verb that makes room, or that ends something, use what is kept back for it when the disk is full."""
    @wraps(verb)
    async def carried_out(self: V, /, *arguments: P.args, **keywords: P.kwargs) -> T:
        while True:
            try:
                return await verb(self, *arguments, **keywords)
            except CatalogFull:
                reserve = self._database.reserve
                if not reserve or not await asyncio.to_thread(reserve.give):
                    raise

    return carried_out


async def _to_its_end(transaction: Coroutine[Any, Any, T]) -> T:
    work = asyncio.ensure_future(transaction)
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
