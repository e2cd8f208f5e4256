"""Turns: as many as there are, and none that gets lost."""

from __future__ import annotations

import asyncio

import pytest

from crd.daemon.turns import Turns

PATIENCE_SECONDS = 60


class Visitor:
    """Takes a turn, and keeps it until it is let go."""

    def __init__(self, turns: Turns) -> None:
        self.let_go = asyncio.Event()
        self.is_inside = False
        self._turns = turns
        self.visit = asyncio.create_task(self._visit())

    async def _visit(self) -> None:
        async with self._turns:
            self.is_inside = True
            await self.let_go.wait()
        self.is_inside = False


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def inside(visitors: list[Visitor]) -> list[bool]:
    await settled()
    return [visitor.is_inside for visitor in visitors]


async def test_as_many_as_there_are_in_the_order_in_which_they_came() -> None:
    turns = Turns(2)
    visitors = [Visitor(turns) for _ in range(4)]
    assert await inside(visitors) == [True, True, False, False]
    visitors[1].let_go.set()
    assert await inside(visitors) == [True, False, True, False]
    turns.resize(3)
    assert await inside(visitors) == [True, False, True, True]
    turns.resize(1)
    late = Visitor(turns)
    for visitor in visitors[2:]:
        visitor.let_go.set()
    assert await inside([*visitors, late]) == [True, False, False, False, False]
    visitors[0].let_go.set()
    assert await inside([late]) == [True]
    late.let_go.set()
    await late.visit


@pytest.mark.parametrize("turns_of_the_loop", range(4))
async def test_who_is_cancelled_about_when_its_turn_comes_takes_none_with_it(turns_of_the_loop: int) -> None:
    turns = Turns(1)
    first, cancelled, last = (Visitor(turns) for _ in range(3))
    await settled()
    first.let_go.set()
    for _ in range(turns_of_the_loop):
        await asyncio.sleep(0)
    cancelled.visit.cancel()
    async with asyncio.timeout(PATIENCE_SECONDS):
        last.let_go.set()
        await last.visit
    assert cancelled.visit.cancelled()


async def test_a_turn_is_given_back_by_who_is_cancelled_in_it() -> None:
    turns = Turns(1)
    first, last = Visitor(turns), Visitor(turns)
    await settled()
    first.visit.cancel()
    last.let_go.set()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await last.visit
