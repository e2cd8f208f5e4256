"""What an archive of many images of one target costs: reading one back, forgetting one, and memory while storing."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from crd.archive.archive import Archive
from crd.archive.stores.local import LocalStore
from crd.ids import Crid
from crd.native.memory import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

RECORD_BYTES = 1 << 20
WRITTEN_BYTES = 256


class Memory:
    """The memory of a process that writes to one in a hundred of its pages, at random, between two images."""

    def __init__(self, mebibytes: int) -> None:
        self._chance = random.Random(1)
        words = [b"%x" % self._chance.getrandbits(self._chance.randrange(8, 64)) for _ in range(4096)]
        self.content = bytearray(mebibytes << 20)
        for at in range(0, len(self.content), PAGE_BYTES):
            text = b" ".join(self._chance.choices(words, k=600))
            self.content[at:at + PAGE_BYTES] = text[:PAGE_BYTES].ljust(PAGE_BYTES)

    def change(self) -> None:
        """Write to pages."""
        n = len(self.content) // PAGE_BYTES
        for page in self._chance.sample(range(n), n // 100):
            at = page * PAGE_BYTES + self._chance.randrange(0, PAGE_BYTES - WRITTEN_BYTES)
            self.content[at:at + WRITTEN_BYTES] = self._chance.randbytes(WRITTEN_BYTES)

    def feed(self) -> tuple[int, int]:
        """Start a process that writes it into a pipe, in records; return its pid and the end to read."""
        read_end, write_end = os.pipe()
        if pid := os.fork():
            os.close(write_end)
            return pid, read_end
        os.close(read_end)
        for at in range(0, len(self.content), RECORD_BYTES):
            for part in (struct.pack("<II", 99, RECORD_BYTES), memoryview(self.content)[at:at + RECORD_BYTES]):
                view = memoryview(part)
                while view:
                    view = view[os.write(write_end, view):]
        os._exit(0)

    async def store(self, archive: Archive, crid: int, base: int | None = None) -> str:
        """Store an image; return its digest."""
        sink = await archive.sink(None if base is None else Crid(base))
        pid, read_end = self.feed()
        try:
            await sink.drain(read_end)
            return (await sink.commit(Crid(crid))).digest
        finally:
            await sink.abort()
            os.close(read_end)
            os.waitpid(pid, 0)


async def read_seconds(archive: Archive, crid: int, digest: str) -> float:
    """Verify an image and read it, as for a restart."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(write_end)
        buffer = bytearray(RECORD_BYTES)
        while os.readv(read_end, [buffer]):
            pass
        os._exit(0)
    os.close(read_end)
    began = time.monotonic()
    source = await archive.source(Crid(crid))
    await source.verify(digest)
    await source.pump(write_end)
    seconds = time.monotonic() - began
    os.close(write_end)
    os.waitpid(pid, 0)
    return seconds


async def forget_seconds(archive: Archive, n: int) -> float:
    """Forget the latest images but one; return the median time."""
    times = []
    for crid in (await archive.crids())[-n - 1:-1]:
        began = time.monotonic()
        await archive.forget(crid)
        times.append(time.monotonic() - began)
    return statistics.median(times)


async def look_seconds(archive: Archive, n: int) -> float:
    """Look at single images; return the median time."""
    times = []
    for crid in (await archive.crids())[-n:]:
        began = time.monotonic()
        await archive.stored(crid)
        times.append(time.monotonic() - began)
    return statistics.median(times)


async def long_history(home: Path, row: Callable[[str, int, str, str, str], None], *, images: int = 1000,
                       mebibytes: int = 64, n: int = 7) -> None:
    """Measure an archive of many images beside one of few."""
    memory, digest = Memory(mebibytes), ""
    async with Archive(LocalStore(home / "long")) as archive, Archive(LocalStore(home / "fresh")) as fresh:
        few_looks = few_forgets = 0.0
        for crid in range(1, images + 1):
            digest = await memory.store(archive, crid, crid - 1)
            memory.change()
            if crid == 10 + n:
                few_looks, few_forgets = await look_seconds(archive, n), await forget_seconds(archive, n)
        memory_digest = await memory.store(archive, images + 1, images)
        fresh_digest = await memory.store(fresh, 1)
        old, new = [], []
        for _ in range(n):
            new.append(await read_seconds(fresh, 1, fresh_digest))
            old.append(await read_seconds(archive, images + 1, memory_digest))
        packs = len((await archive.source(Crid(images + 1))).manifest.packs)
        assert digest
        looks, forgets = await look_seconds(archive, n), await forget_seconds(archive, n)
    ours, baseline = statistics.median(old), statistics.median(new)
    row(f"verifying and reading back image {images} of {mebibytes} MiB, 1 % written between two ({packs} packs)", n,
        f"{mebibytes / ours:.0f} MiB/s", f"{mebibytes / baseline:.0f} MiB/s for the same image stored afresh",
        f"{ours / baseline:.2f} times as long")
    row(f"looking at one of {images} images in the archive", n, f"{looks * 1e3:.1f} ms",
        f"{few_looks * 1e3:.1f} ms with {10 + n}", f"{looks / few_looks:.2f}")
    row(f"forgetting one of {images} images", n, f"{forgets * 1e3:.1f} ms", f"{few_forgets * 1e3:.1f} ms with {10 + n}",
        f"{forgets / few_forgets:.2f}")


def resident_kib(field: str) -> int:
    """Return a value of our /proc/PID/status in KiB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field + ":")).split()[1])


def memory_while_storing(home: Path, row: Callable[[str, int, str, str, str], None], *, mebibytes: int = 1024,
                         n: int = 3) -> None:
    """Measure by how much a process grows that stores an image and did nothing before."""
    memory = Memory(mebibytes)
    grown = []
    for number in range(n):
        pid, read_end = memory.feed()
        done = subprocess.run([sys.executable, "-m", "tests.bench.history", home / f"memory-{number}", str(read_end)],
                              check=True, capture_output=True, text=True, pass_fds=[read_end])
        grown.append(float(done.stdout))
        os.close(read_end)
        os.waitpid(pid, 0)
    row(f"memory of the daemon's process while it stores a first image of {mebibytes} MiB", n,
        f"{statistics.median(grown):.0f} MiB more", "61 MiB are allowed", f"{statistics.median(grown) / 61:.2f}")


async def growth_mib(place: Path, read_end: int) -> float:
    """Store what comes out of a pipe; return the growth of our resident memory at its highest."""
    async with Archive(LocalStore(place)) as archive:
        sink = await archive.sink()
        Path("/proc/self/clear_refs").write_text("5")  # forgets the highest so far (proc(5))
        before = resident_kib("VmRSS")
        await sink.drain(read_end)
        await sink.commit(Crid(1))
        await sink.abort()
        return (resident_kib("VmHWM") - before) / 1024


if __name__ == "__main__":
    print(asyncio.run(growth_mib(Path(sys.argv[1]), int(sys.argv[2]))))
