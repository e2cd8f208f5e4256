"""How fast the archive takes an image from a pipe, beside zstd alone on the same bytes.

``python tests/bench/archive_throughput.py [--mebibytes 1024] [--repeats 5] [--directory /var/tmp]`` prints one line of
JSON.  The data is the memory of a real CPython process full of dictionaries, strings and floats; each repeat runs zstd
alone (same level, threads and frames, the bytes in memory), then the archive (a feeder process splices the bytes into a
pipe; what counts is drain, and drain with the commit), then a restart's reading of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import zstandard

from crd.archive.archive import Archive
from crd.archive.pack import BLOCK_BYTES
from crd.archive.stores.local import LocalStore
from crd.ids import Crid

_MIB = 1 << 20


@dataclass(frozen=True)
class Round:
    """One repeat; rates in MiB/s of raw bytes, times in seconds of CPU of this process."""

    zstd_alone: float
    zstd_alone_cpu_seconds: float
    drain: float
    drain_cpu_seconds: float
    drain_and_commit: float
    verify: float
    pump: float
    stored_bytes: int

    @property
    def drain_ratio(self) -> float:
        """The archive beside zstd alone, before the commit."""
        return self.drain / self.zstd_alone

    @property
    def durable_ratio(self) -> float:
        """The archive beside zstd alone, the commit included."""
        return self.drain_and_commit / self.zstd_alone


def grow_heap(fd: int, mebibytes: int) -> None:
    """Fill this process's heap, and dump its anonymous memory to a file; for a child process."""
    chance = random.Random(1)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(3, 10))) for _ in range(20000)]
    objects: list[object] = []
    while _anonymous_bytes() < mebibytes * _MIB:
        objects += [{"id": n, "name": chance.choice(words) + str(n), "score": chance.random(),
                     "tags": [chance.choice(words) for _ in range(4)],
                     "text": " ".join(chance.choice(words) for _ in range(6))} for n in range(20000)]
        objects.append(bytearray(chance.randbytes(1 << 16)))
    left = mebibytes * _MIB
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory, open(fd, "wb") as dump:
        for line in maps:
            span, rights, *_, name = [*line.split(maxsplit=5), ""][:7]
            start, end = (int(edge, 16) for edge in span.split("-"))
            if rights != "rw-p" or name.startswith("[v"):
                continue
            for at in range(start, min(end, start + left), _MIB):
                memory.seek(at)
                left -= dump.write(memory.read(min(_MIB, end - at, left)))


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) << 10


def heap(mebibytes: int) -> int:
    """Return a memory file of heap-like bytes."""
    fd = os.memfd_create("heap")
    if os.fork() == 0:
        grow_heap(fd, mebibytes)
        os._exit(0)
    assert os.wait()[1] == 0
    assert os.fstat(fd).st_size == mebibytes * _MIB
    return fd


def zstd_alone(content: memoryview, level: int, threads: int) -> None:
    """Compress the frames on threads, and throw them away."""
    starts = range(0, len(content), BLOCK_BYTES)

    def compress(thread: int) -> None:
        compressor = zstandard.ZstdCompressor(level=level)
        for start in starts[thread::threads]:
            compressor.compress(content[start:start + BLOCK_BYTES])

    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(compress, range(threads)))


def feed(content_fd: int) -> tuple[int, int]:
    """Start a process that splices a file into a pipe; return its pid and the end to read."""
    read_fd, write_fd = os.pipe()
    size = os.fstat(content_fd).st_size
    if pid := os.fork():
        os.close(write_fd)
        return pid, read_fd
    os.close(read_fd)
    offset = 0
    while offset < size:
        offset += os.splice(content_fd, write_fd, min(_MIB, size - offset), offset_src=offset)
    os._exit(0)


def swallow() -> tuple[int, int]:
    """Start a process that reads a pipe to its end; return its pid and the end to write."""
    read_fd, write_fd = os.pipe()
    if pid := os.fork():
        os.close(read_fd)
        return pid, write_fd
    os.close(write_fd)
    buffer = bytearray(_MIB)
    while os.readv(read_fd, [buffer]):
        pass
    os._exit(0)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure_round(content_fd: int, content: memoryview, directory: Path, level: int, threads: int) -> Round:
    """Measure everything once."""
    begun, cpu = time.perf_counter(), _cpu_seconds()
    zstd_alone(content, level, threads)
    alone_seconds, alone_cpu = time.perf_counter() - begun, _cpu_seconds() - cpu
    async with Archive(LocalStore(directory), level=level, threads=threads) as archive:
        feeder, read_fd = feed(content_fd)
        sink = await archive.sink()
        begun, cpu = time.perf_counter(), _cpu_seconds()
        assert await sink.drain(read_fd) == len(content)
        drain_seconds, drain_cpu = time.perf_counter() - begun, _cpu_seconds() - cpu
        stored = await sink.commit(Crid(1))
        commit_seconds = time.perf_counter() - begun
        os.close(read_fd)
        os.waitpid(feeder, 0)
        source = await archive.source(Crid(1))
        begun = time.perf_counter()
        await source.verify(stored.digest)
        verify_seconds = time.perf_counter() - begun
        reader, write_fd = swallow()
        begun = time.perf_counter()
        await source.pump(write_fd)
        pump_seconds = time.perf_counter() - begun
        os.close(write_fd)
        os.waitpid(reader, 0)
        await archive.forget(Crid(1))
    mebibytes = len(content) / _MIB
    return Round(mebibytes / alone_seconds, alone_cpu, mebibytes / drain_seconds, drain_cpu,
                 mebibytes / commit_seconds, mebibytes / verify_seconds, mebibytes / pump_seconds,
                 stored.stored_bytes)


def measure(mebibytes: int = 1024, repeats: int = 5, *, directory: Path | None = None, level: int = 1,
            threads: int = 2) -> list[Round]:
    """Measure the archive.

    Args:
        mebibytes: of heap-like data.
        repeats: how often.
        directory: the file system to store in; the default one for temporary files if None.
        level: of zstd.
        threads: that compress.
    """
    content_fd = heap(mebibytes)
    with tempfile.TemporaryDirectory(dir=directory) as place, mmap.mmap(
            content_fd, 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE) as mapped:
        content = memoryview(mapped)
        store = Path(place) / "archive"
        rounds = [asyncio.run(measure_round(content_fd, content, store, level, threads)) for _ in range(repeats)]
        content.release()
    os.close(content_fd)
    return rounds


def summary(rounds: list[Round]) -> dict[str, float]:
    """Return the medians over the rounds, and of the ratios within each."""
    names = [field.name for field in fields(Round)] + ["drain_ratio", "durable_ratio"]
    return {"n": len(rounds)} | {name: round(statistics.median(getattr(one, name) for one in rounds), 3)
                                 for name in names}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mebibytes", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--level", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", action="store_true", help="print each round, too")
    given = parser.parse_args()
    rounds = measure(given.mebibytes, given.repeats, directory=given.directory, level=given.level,
                     threads=given.threads)
    if given.rounds:
        for one in rounds:
            print(json.dumps(asdict(one)), file=sys.stderr)
    print(json.dumps(summary(rounds)))


if __name__ == "__main__":
    main()
