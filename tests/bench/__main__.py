"""``make bench``: stop time, throughput and restart time, each beside a baseline of the same run.

Prints a Markdown table; n and the median of each.  Nothing here is a test: no test depends on the machine's speed.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import zstandard

from crd.archive.archive import Archive
from crd.archive.keys import KEY_BYTES, Key, KeyRing
from crd.archive.stores.local import LocalStore
from crd.archive.stores.sealed import SealedStore
from crd.catalog.catalog import Catalog
from crd.daemon.pipeline import Pipeline
from crd.daemon.tracking import Tracks
from crd.engine.api import CheckpointOptions, checkpoint, restart
from crd.engine.crid import CridCounter
from crd.engine.pool import WorkerPool
from crd.engine.userspace.notes import WriteNotes
from crd.engine.userspace.tree import frozen
from crd.native.memory import process_read_runs
from crd.native.pagemap import PageMap
from crd.target import procfs
from tests.bench import s3_throughput, slow_down, workers
from tests.bench.catalog import catalog
from tests.bench.filter_cost import filter_cost
from tests.bench.history import long_history, memory_while_storing, read_seconds
from tests.bench.scrape import scrape
from tests.bench.used import Used, cpu_seconds
from tests.support.gaps import longest_gap_ms
from tests.support.victims import Program, Victim, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crd.catalog.rows import Image

FRAME_BYTES = 256 << 10
CHUNK_BYTES = 8 << 20
HEAP = """
import random, sys, time
random.seed(1)
words = ["row", "user", "process", "checkpoint", "image", "thread", "memory"]
rows = []
while len(rows) < int(sys.argv[1]):
    number = len(rows)
    rows.append({"id": number, "score": random.random(), "name": f"{random.choice(words)} {number}",
                 "tags": [random.choice(words), number % 17], "at": 1.7e9 + number})
open("ready", "w").close()
time.sleep(1e6)
"""
CHANGES = """
import mmap, os, random, time
size = 1 << 30
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
random.seed(1)
words = [b"%x" % random.getrandbits(random.randrange(8, 64)) for _ in range(4096)]
for at in range(0, size, 4096):
    memory[at:at + 4096] = b" ".join(random.choices(words, k=600))[:4096].ljust(4096)
open("ready", "w").close()
while True:
    while not os.path.exists("go"):
        time.sleep(0.01)
    for page in random.sample(range(size // 4096), size // 4096 // 100):
        at = page * 4096 + random.randrange(0, 4096 - 256)
        memory[at:at + 256] = random.randbytes(256)
    os.unlink("go")
"""
FAMILY = """
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void *rest(void *argument) { for (;;) pause(); return argument; }

int main(int argc, char **words)
{
    for (int i = 1; argc > 2 && i < atoi(words[1]); i++)
        if (fork() == 0)
            break;
    for (int i = 1; i < atoi(words[2]); i++)
        pthread_create(&(pthread_t){0}, NULL, rest, NULL);
    rest(NULL);
}
"""
MANY_AREAS = """
import mmap, time
areas = [mmap.mmap(-1, 32768, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
                   prot=mmap.PROT_READ | (mmap.PROT_WRITE if number % 2 else 0)) for number in range(210)]
for area in areas[1::2]:
    area[:] = bytes([7]) * 32768
ballast = bytes(range(256)) * (4 << 10) * 4
open("ready", "w").close()
time.sleep(1e6)
"""


def row(what: str, n: int, ours: str, baseline: str, ratio: str) -> None:
    """Print a line of the table."""
    print(f"| {what} | {n} | {ours} | {baseline} | {ratio} |", flush=True)


def resident(pid: int) -> list[tuple[int, int]]:
    """Return the private pages of a process as runs of at most CHUNK_BYTES."""
    runs = []
    with PageMap(pid) as pagemap:
        for entry in procfs.maps(pid):
            if not entry.shared and not entry.path.startswith("[v"):
                for start, length in pagemap.own_pages([(entry.start, entry.end - entry.start)]):
                    runs += [(at, min(CHUNK_BYTES, start + length - at))
                             for at in range(start, start + length, CHUNK_BYTES)]
    return runs


def stop_and_copy_seconds(pid: int) -> float:
    """Read all resident memory once with process_vm_readv while the process is stopped."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with frozen(pid, 5.0) as tree:
        runs = resident(pid)
        began = time.monotonic()
        for run in runs:
            process_read_runs(pid, [run], buffer[:run[1]])
        tree.haste.relax()
        return time.monotonic() - began


def stop_time(home: Path, mebibytes: int, n: int) -> None:
    """Measure the stop of a busy writer."""
    crids = CridCounter(home / "crid")
    with Victim("rwhog", home, mebibytes, 200_000) as victim, open(os.devnull, "wb") as null:
        gaps = [longest_gap_ms(victim, lambda: checkpoint(victim.pid, null.fileno(), crids=crids)) for _ in range(n)]
        copies = [stop_and_copy_seconds(victim.pid) * 1e3 for _ in range(n)]
    ours, baseline = statistics.median(gaps), statistics.median(copies)
    row(f"stop of a busy writer, {mebibytes} MiB in 4 KiB pages, as it sees it itself", n, f"{ours:.1f} ms",
        f"{baseline:.1f} ms to read it once by process_vm_readv", f"{ours / baseline:.2f}")


def stop_with_notes(home: Path, mebibytes: int, n: int) -> None:
    """Measure the stop of a writer of which is noted what it writes: 1 % of its pages in a second."""
    crids, notes, gaps = CridCounter(home / "crid"), WriteNotes(), []
    place = home / "noted"
    place.mkdir()
    with Victim("rwhog", place, mebibytes, (mebibytes << 8) // 100) as victim, open(os.devnull, "wb") as null:
        for _ in range(1 + n):
            gaps.append(longest_gap_ms(victim, lambda: checkpoint(victim.pid, null.fileno(), crids=crids, notes=notes)))
            notes.since = True
            time.sleep(1)
        notes.close()
        copies = [stop_and_copy_seconds(victim.pid) * 1e3 for _ in range(n)]
    ours, baseline = statistics.median(gaps[1:]), statistics.median(copies)
    row(f"the same, {mebibytes} MiB, 1 % or more of its pages written since the last image", n, f"{ours:.1f} ms",
        f"{baseline:.1f} ms to read it once by process_vm_readv", f"{ours / baseline:.3f}")


def stop_of_threads(home: Path, n: int) -> None:
    """Measure how much longer a stop takes with many threads, from freeze to thaw: a thread sees that, and its turn."""
    crids = CridCounter(home / "crid")
    medians = []
    for threads in (0, 63):
        place = home / f"threads-{threads}"
        place.mkdir()
        with Victim("rwhog", place, 64, 200_000, threads) as victim, open(os.devnull, "wb") as null:
            stops = [checkpoint(victim.pid, null.fileno(), crids=crids).stop_seconds * 1e3 for _ in range(n)]
        medians.append(statistics.median(stops))
    row("stop of the same 64 MiB with 64 busy threads, freeze to thaw", n, f"{medians[1]:.1f} ms",
        f"{medians[0]:.1f} ms with one", f"+{medians[1] - medians[0]:.1f} ms")


@contextmanager
def python(home: Path, source: str, *words: str) -> Iterator[int]:
    """Run a Python program until it says that it is ready."""
    home.mkdir(exist_ok=True)
    with (home / "out").open("wb") as out:
        process = subprocess.Popen([sys.executable, "-c", source, *words], cwd=home, stdin=subprocess.DEVNULL,
                                   stdout=out, stderr=out, start_new_session=True)
    try:
        until("program", (home / "ready").exists, seconds=300)
        yield process.pid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        with suppress(ChildProcessError):
            process.wait()


def zstd_alone(pid: int, threads: int) -> Used:
    """Compress the same bytes, in memory already, by the same level, frames and threads."""
    runs = resident(pid)
    content = memoryview(bytearray(sum(length for _, length in runs)))
    at = 0
    for run in runs:
        process_read_runs(pid, [run], content[at:at + run[1]])
        at += run[1]
    local = threading.local()

    def compress(start: int) -> int:
        if not hasattr(local, "zstd"):
            local.zstd = zstandard.ZstdCompressor(level=1)
        return len(local.zstd.compress(content[start:start + FRAME_BYTES]))

    with ThreadPoolExecutor(threads) as executor:
        began, before = time.monotonic(), cpu_seconds()
        sum(executor.map(compress, range(0, len(content), FRAME_BYTES)))
        return Used(len(content), time.monotonic() - began, cpu_seconds() - before)


async def stored(pipeline: Pipeline, pid: int, target: str | None = None) -> tuple[Image, Used]:
    """Take an image; its worker is waited for."""
    await asyncio.sleep(1)
    began, before = time.monotonic(), cpu_seconds()
    image = await pipeline.checkpoint(pid, CheckpointOptions(), target=target)
    seconds = time.monotonic() - began
    await asyncio.sleep(0.2)  # the nursery reaps the worker
    return image, Used(image.memory_bytes, seconds, cpu_seconds() - before)


async def whole_checkpoint(home: Path, rows: int, n: int, threads: int) -> None:
    """Measure a checkpoint from the request to the catalog, in clear and encrypted, and reading it back.

    Args:
        home: an empty directory.
        rows: of the program.
        n: how often.
        threads: that compress.
    """
    keys = KeyRing([Key(secrets.token_bytes(KEY_BYTES))])
    clear: list[Used] = []
    encrypted: list[Used] = []
    alone: list[Used] = []
    read: list[float] = []
    with python(home / "heap", HEAP, str(rows)) as pid:
        async with (Archive(LocalStore(home / "archive"), threads=threads) as archive,
                    Archive(SealedStore(LocalStore(home / "sealed"), keys), threads=threads) as sealed,
                    await Catalog.open(f"sqlite:///{home}/catalog.db", "bench") as catalog,
                    WorkerPool() as workers):
            for _ in range(n):
                for kept, taken in ((archive, clear), (sealed, encrypted)):
                    pipeline = Pipeline(workers, kept, catalog, home / "crid", "bench", Tracks(enabled=True), 600, 600)
                    image, used = await stored(pipeline, pid)
                    taken.append(used)
                    if kept is archive:
                        seconds = await read_seconds(archive, image.crid, image.digest)
                        read.append(image.image_bytes / seconds / 2**20)
                    await kept.forget(image.crid)
                alone.append(await asyncio.to_thread(zstd_alone, pid, threads))
    what = f"whole checkpoint of {alone[0].size >> 20} MiB of Python heap into the archive, compressed by {threads}"
    for name, taken, wanted in ((what, clear, 0.8), (f"{what}, encrypted", encrypted, 0.7)):
        ours, theirs = (statistics.median(used.rate for used in each) for each in (taken, alone))
        row(name, n, f"{ours:.0f} MiB/s", f"{theirs:.0f} MiB/s zstd alone, of which {wanted} is wanted",
            f"{ours / theirs:.2f}")
        ours, theirs = (statistics.median(used.cpu for used in each) for each in (taken, alone))
        row(f"{name}: CPU time a GiB", n, f"{ours:.2f} s", f"{theirs:.2f} s zstd alone", f"{ours / theirs:.2f}")
    back = statistics.median(read)
    row("reading it back, every page verified", n, f"{back:.0f} MiB/s", "1024 MiB/s are wanted", f"{back / 1024:.2f}")


async def increments(home: Path, n: int) -> None:
    """Measure images of a process that writes 1 % of its pages between them."""
    with python(home / "changes", CHANGES) as pid:
        async with (Archive(LocalStore(home / "increments")) as archive,
                    await Catalog.open(f"sqlite:///{home}/increments.db", "bench") as catalog,
                    WorkerPool() as workers):
            pipeline = Pipeline(workers, archive, catalog, home / "crid", "bench", Tracks(enabled=True), 600, 600)
            cpu, seconds, sizes = [], [], []
            for _ in range(1 + n):
                go = home / "changes" / "go"
                go.touch()
                await asyncio.to_thread(until, "changes", lambda go=go: not go.exists())
                image, used = await stored(pipeline, pid, "changes")
                seconds.append(used.seconds)
                cpu.append(used.cpu_seconds)
                sizes.append(image.stored_bytes)
    what = "image of 1 GiB, 1 % of its pages written since the last one"
    row(f"{what}: CPU time", n, f"{statistics.median(cpu[1:]):.2f} s", f"{cpu[0]:.2f} s for the first one",
        f"{statistics.median(cpu[1:]) / cpu[0]:.2f}")
    row(f"{what}: from request to catalog", n, f"{statistics.median(seconds[1:]):.2f} s",
        f"{seconds[0]:.2f} s for the first one", f"{statistics.median(seconds[1:]) / seconds[0]:.2f}")
    row(f"{what}: stored", n, f"{statistics.median(sizes[1:]) / 2**20:.1f} MiB",
        f"{sizes[0] / 2**20:.1f} MiB for the first one", f"{statistics.median(sizes[1:]) / sizes[0]:.3f}")


def restart_time(home: Path, n: int) -> None:
    """Measure a restart, from the first byte read to the release."""
    starts = []
    for _ in range(n):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        starts.append((time.monotonic() - began) * 1e3)
    with python(home / "areas", MANY_AREAS) as pid:
        with (home / "image").open("wb") as file:
            checkpoint(pid, file.fileno(), crids=CridCounter(home / "crid"))
        areas = len(procfs.maps(pid))
    times = [in_a_child(lambda: restart_once(home / "image")) for _ in range(n)]
    ours, baseline = statistics.median(times), statistics.median(starts)
    row(f"restart of {areas} areas and {(home / 'image').stat().st_size >> 20} MiB", n, f"{ours:.1f} ms",
        f"{baseline:.1f} ms for python3 -c pass", f"{ours / baseline:.2f}")


def restart_once(image: Path) -> float:
    """Restart an image under new pids, kill it, and return the milliseconds."""
    from crd.engine.api import Pids, RestartOptions

    with image.open("rb") as file:
        result = restart(file.fileno(), options=RestartOptions(pids=Pids.NEW))
    for pid in result.pids.values():
        with suppress(ProcessLookupError):
            os.kill(pid, 9)
    os.waitpid(result.root_pid, 0)
    return result.duration_seconds * 1e3


@contextmanager
def family(home: Path, tasks: int, threads: int) -> Iterator[Program]:
    """Run a tree of so many tasks with so many threads each, at rest for longer than a second."""
    home.mkdir(exist_ok=True)
    subprocess.run(["gcc", "-O1", "-pthread", "-x", "c", "-o", home / "family", "-"], input=FAMILY.encode(), check=True)
    with Program([home / "family", str(tasks), str(threads)], home) as program:
        until("family", lambda: len(program.family()) == tasks and all(
            procfs.n_threads(pid) == threads for pid in program.family()))
        time.sleep(1.5)
        yield program
        program.kill_tree()


def trees(home: Path, n: int) -> None:
    """Measure the stop of a tree against that of one task of it, and the restart of a tree."""
    crids, stops = CridCounter(home / "crid"), []
    for tasks in (1, 100):
        with family(home / f"family-{tasks}", tasks, 10) as program, open(os.devnull, "wb") as null:
            stops.append(statistics.median(
                checkpoint(program.pid, null.fileno(), crids=crids).stop_seconds * 1e3 for _ in range(n)))
    row("stop of a tree of 100 tasks with 10 threads each, freeze to thaw", n, f"{stops[1]:.0f} ms",
        f"{stops[0]:.1f} ms for one of them", f"{stops[1] / stops[0]:.0f}")
    with family(home / "small", 100, 1) as program, (home / "tree").open("wb") as file:
        checkpoint(program.pid, file.fileno(), crids=crids)
    seconds = statistics.median(in_a_child(lambda: restart_once(home / "tree")) for _ in range(n)) / 1e3
    row("restart of a tree of 100 small tasks", n, f"{seconds:.2f} s", "3 s at most", f"{seconds / 3:.2f}")


def in_a_child(work: Callable[[], float]) -> float:
    """Run work as a worker does: in a process that did nothing before."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, str(work()).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return float(text)


def main() -> None:
    """Measure everything."""
    print("| what | n | crd | baseline | ratio |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="crd-bench-") as name:
        home = Path(name)
        restart_time(home, 9)
        stop_time(home, 64, 15)
        stop_time(home, 1024, 7)
        stop_with_notes(home, 1024, 15)
        stop_of_threads(home, 15)
        trees(home, 7)
        filter_cost(home, 15, row)
        for threads in (1, 2):
            (whole := home / f"by {threads}").mkdir()
            asyncio.run(whole_checkpoint(whole, 2_600_000, 5, threads))
        asyncio.run(increments(home, 7))
        asyncio.run(workers.compare(home, python, row))
        memory_while_storing(home, row)
        asyncio.run(long_history(home, row))
    scrape(row, 15)
    catalog(row, 5)
    s3_throughput.main()
    with tempfile.TemporaryDirectory(prefix="crd-bench-") as name:
        asyncio.run(slow_down.table(Path(name)))


if __name__ == "__main__":
    main()
