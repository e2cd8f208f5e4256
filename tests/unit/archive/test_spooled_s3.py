"""A spool before S3: what is acknowledged reaches it, however it fails and whoever is killed meanwhile."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.archive.archive import Archive
from crd.archive.stores.s3 import S3Store
from crd.archive.stores.s3_object import PART_BYTES
from crd.errors import ArchiveUnavailable
from tests.support.faulty import FaultyProxy
from tests.unit.archive.spooling import pages
from tests.unit.archive.spools import moved, moving, opened, put
from tests.unit.archive.streams import read_image, stream

if TYPE_CHECKING:
    from tests.support.seaweed import SeaweedServer

pytestmark = pytest.mark.usefixtures("impatient")

ROOT = Path(__file__).parents[3]
SAID = ("stored", "forgetting", "forgotten")


async def test_moving_over_s3_that_fails_now_and_then(tmp_path: Path, seaweed: SeaweedServer) -> None:
    """With the server killed in the middle, and a network that loses every fifth request."""
    content = {f"{number:02d}": random.Random(number).randbytes(number * 1_500_000) for number in range(12)}
    async with FaultyProxy(seaweed.port) as proxy:
        chance = random.Random(1)
        proxy.fault = lambda _method, _path: chance.choice(("", "", "", "", "503", "cut", "lost", "torn"))
        location = seaweed.location("spool", tmp_path.name, proxy.endpoint)
        store = await opened(tmp_path / "spool", S3Store(location, retry_seconds=1))
        async with moving(store):
            while store._known is None:
                try:
                    await store.objects()
                except ArchiveUnavailable:
                    await asyncio.sleep(0.1)
            for number, (key, data) in enumerate(content.items()):
                await put(store, key, data)
                if number == 6:
                    await asyncio.to_thread(seaweed.kill)
            await asyncio.to_thread(seaweed.start)
            await moved(store)
        proxy.fault = lambda _method, _path: ""
        behind = S3Store(location)
        await behind.clear_torn()
        assert await behind.objects() == {key: len(data) for key, data in content.items()}
        for key, data in content.items():
            assert await behind.read(key, 0, len(data) + 1) == data


def run_and_kill(chance: random.Random, *words: str) -> dict[str, set[int]]:
    """Run ``spooling.py`` until it has said something, and a moment longer; return what it said of which images."""
    with subprocess.Popen([sys.executable, "-m", "tests.unit.archive.spooling", *words], cwd=ROOT,
                          stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        lines = [process.stdout.readline() for _ in range(chance.randrange(1, 12))]
        time.sleep(chance.uniform(0, 0.06))
        process.kill()
        said = [line.split() for line in (*lines, *process.stdout.read().splitlines())]
    return {what: {int(number) for verb, number in said if verb == what} for what in SAID}


async def test_whoever_is_killed_loses_nothing_that_was_acknowledged(tmp_path: Path, seaweed: SeaweedServer) -> None:
    chance, following = random.Random(3), 1
    said: dict[str, set[int]] = {what: set() for what in SAID}
    location = seaweed.location("killed", tmp_path.name)
    words = (seaweed.endpoint, tmp_path.name, str(location.credentials), str(tmp_path / "spool"))
    for _ in range(12):
        more = await asyncio.to_thread(run_and_kill, chance, *words, str(following))
        said = {what: said[what] | more[what] for what in SAID}
        following = max(said["stored"], default=0) + 2
    store = await opened(tmp_path / "spool", S3Store(location))
    async with moving(store), Archive(store) as archive:
        await moved(store)
        there = set(await archive.crids())
        assert said["stored"] - said["forgetting"] <= there
        assert not said["forgotten"] & there
        assert there <= set(range(1, following))
        for crid in there:
            assert await read_image(archive, crid) == stream(pages(crid))
    async with Archive(S3Store(location)) as archive:
        assert set(await archive.crids()) == there, "it does not need the spool"
        for crid in there:
            await archive.forget(crid)
        assert await S3Store(location).objects() == {}
    assert len(said["stored"]) >= 20
    assert len(said["forgotten"]) >= 5


@pytest.mark.parametrize("size", [100, 3 * PART_BYTES + 100])
async def test_a_move_that_was_done_although_it_seemed_to_fail(tmp_path: Path, seaweed: SeaweedServer,
                                                               size: int) -> None:
    """The server has the object, its answers are lost, and it cannot be reached to take the object back."""
    content, since = random.Random(size).randbytes(size), 0

    def lose(method: str, path: str) -> str:
        nonlocal since
        since += bool(since) or (method == "PUT" and path.endswith("/a"))
        return ("lost" if method == "PUT" else "away") if 0 < since < 12 else ""

    async with FaultyProxy(seaweed.port) as proxy:
        store = await opened(tmp_path / "spool", S3Store(seaweed.location("spool", tmp_path.name, proxy.endpoint),
                                                         retry_seconds=0.3))
        await store.objects()
        await put(store, "a", content)
        proxy.fault = lose
        async with moving(store):
            await moved(store)
        assert since >= 12
        assert await store.read("a", 0, size + 1) == content
    behind = S3Store(seaweed.location("spool", tmp_path.name))
    assert await behind.clear_torn() == 0
    assert await behind.read("a", 0, size + 1) == content
