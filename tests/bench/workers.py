"""Forked workers that share memory copy-on-write: what their image costs beside that of one process."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from crd.engine.api import CheckpointOptions
from tests.bench.slow_down import pipeline

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

WORKERS = 8
SHARING = """
import mmap, os, random, sys, time
size = int(sys.argv[1]) << 20
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
random.seed(1)
words = [b"%x" % random.getrandbits(random.randrange(8, 64)) for _ in range(4096)]
for at in range(0, size, 4096):
    memory[at:at + 4096] = b" ".join(random.choices(words, k=600))[:4096].ljust(4096)
for number in range(int(sys.argv[2])):
    if os.fork() == 0:
        for page in random.sample(range(size // 4096), 64):
            memory[page * 4096:page * 4096 + 8] = number.to_bytes(8, "little")
        time.sleep(1e6)
time.sleep(1)
open("ready", "w").close()
time.sleep(1e6)
"""


async def stored_bytes(home: Path, start: Callable[..., AbstractContextManager[int]], mebibytes: int, workers: int,
                       n: int) -> list[int]:
    """Return what fresh images of the program with so many workers cost."""
    sizes = []
    with start(home / f"workers-{workers}", SHARING, str(mebibytes), str(workers)) as pid:
        for number in range(n):
            async with pipeline(home, f"sharing-{workers}-{number}") as images:
                sizes.append((await images.checkpoint(pid, CheckpointOptions())).stored_bytes)
    return sizes


async def compare(home: Path, start: Callable[..., AbstractContextManager[int]],
                  row: Callable[[str, int, str, str, str], None], *, mebibytes: int = 1024, n: int = 3) -> None:
    """Measure a program with workers beside one without."""
    alone, shared = [statistics.median(await stored_bytes(home, start, mebibytes, workers, n))
                     for workers in (0, WORKERS)]
    row(f"image of a program of {mebibytes} MiB that has forked {WORKERS} workers: stored", n,
        f"{shared / 2**20:.1f} MiB", f"{alone / 2**20:.1f} MiB without workers", f"{shared / alone:.2f}")
