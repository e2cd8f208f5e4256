"""What being looked after costs a busy target: how much slower it is, how long it stands still, what is stored."""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from crd.archive.archive import Archive
from crd.archive.stores.local import LocalStore
from crd.catalog.catalog import Catalog
from crd.daemon.pipeline import Pipeline
from crd.daemon.tracking import Tracks
from crd.engine.api import CheckpointOptions
from crd.engine.pool import WorkerPool
from tests.support.gaps import mark
from tests.support.victims import Victim

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_FIRST_SECONDS = 20


class Case(NamedTuple):
    """How often a target is saved, how large it is, and what part of its pages it writes to in a second."""

    interval_seconds: float
    mebibytes: int
    written_a_second: float


CASES = [Case(10, 1024, 0.01), Case(10, 1024, 0.1), Case(10, 256, 0.01), Case(2, 256, 0.01)]


@asynccontextmanager
async def pipeline(home: Path, name: str) -> AsyncIterator[Pipeline]:
    """Set up what a daemon takes images with."""
    async with (Archive(LocalStore(home / name)) as archive, WorkerPool() as workers,
                await Catalog.open(f"sqlite:///{home / name}.db", "bench") as catalog):
        yield Pipeline(workers, archive, catalog, home / "crid", "bench", Tracks(enabled=True), 600, 600)


async def pace(victim: Victim, seconds: float) -> float:
    """Return how many rounds a second a victim makes while it is left alone."""
    before, began = await asyncio.to_thread(mark, victim), time.monotonic()
    await asyncio.sleep(seconds)
    after = await asyncio.to_thread(mark, victim)
    return (after.rounds - before.rounds) / (time.monotonic() - began)


async def measure(home: Path, case: Case, n: int) -> str:
    """Return the line of a case."""
    place = home / f"{case.interval_seconds}-{case.mebibytes}-{case.written_a_second}"
    place.mkdir()
    pages_a_second = int((case.mebibytes << 8) * case.written_a_second)
    with Victim("rwhog", place, case.mebibytes, pages_a_second) as victim:
        async with pipeline(place, "images") as images:
            await images.checkpoint(victim.pid, CheckpointOptions(), target="it")
            alone = await pace(victim, min(case.interval_seconds * n, _FIRST_SECONDS))
            gaps, stored, begun = [], [], time.monotonic()
            first = await asyncio.to_thread(mark, victim)
            for number in range(n):
                await asyncio.sleep(begun + (number + 1) * case.interval_seconds - time.monotonic())
                await asyncio.to_thread(mark, victim)
                image = await images.checkpoint(victim.pid, CheckpointOptions(), target="it")
                gaps.append((await asyncio.to_thread(mark, victim)).longest_gap_ns / 1e6)
                stored.append(image.stored_bytes)
            last = await asyncio.to_thread(mark, victim)
            watched = (last.rounds - first.rounds) / (time.monotonic() - begun)
    return (f"| {case.interval_seconds:g} s | {case.mebibytes} MiB | {case.written_a_second:.0%}/s | {n} "
            f"| {1 - watched / alone:.1%} | {statistics.median(gaps):.1f} / {max(gaps):.1f} ms "
            f"| {statistics.median(stored) / 2**20:.1f} MiB |")


async def table(home: Path, n: int = 7) -> None:
    """Measure and print all cases."""
    print("\n| an image every | size | pages written | n | slower by | stop, p50 / worst | stored an image |\n"
          "|---|---|---|---|---|---|---|", flush=True)
    for case in CASES:
        print(await measure(home, case, n), flush=True)
