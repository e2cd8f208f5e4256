"""How fast the store on S3 takes an object and gives it back, beside the library's own multipart upload.

``python -m tests.bench.s3_throughput [repeats]`` prints a line of the table; the server is SeaweedFS on loopback, and
takes more of the processors than the client does.  Of both uploads, as many bytes are under way at a time.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import obstore

from crd.archive.stores.s3 import S3Store
from crd.archive.stores.s3_object import PART_BYTES
from tests.support.seaweed import SeaweedServer

MEBIBYTES = 200


def resident_mebibytes() -> float:
    """Return how much of this process is in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / (1 << 20)


async def measure(server: SeaweedServer, repeats: int) -> str:
    """Return the line."""
    store = S3Store(server.location("bench"))
    block = os.urandom(1 << 20)
    ours, library, reads, memory = [], [], [], []
    for number in range(repeats):
        before, peak, began = resident_mebibytes(), 0.0, time.perf_counter()
        upload = await store.create(f"{number}")
        for _ in range(MEBIBYTES):
            await upload.write([block])
            peak = max(peak, resident_mebibytes())
        await upload.commit()
        ours.append(MEBIBYTES / (time.perf_counter() - began))
        memory.append(peak - before)
        began = time.perf_counter()
        await asyncio.to_thread(obstore.put, server.bucket("bench"), f"library-{number}", [block] * MEBIBYTES,
                                chunk_size=2 * PART_BYTES, max_concurrency=2, use_multipart=True)
        library.append(MEBIBYTES / (time.perf_counter() - began))
        began = time.perf_counter()
        for offset in range(0, MEBIBYTES << 20, 4 << 20):
            await store.read(f"{number}", offset, 4 << 20)
        reads.append(MEBIBYTES / (time.perf_counter() - began))
        await store.delete(f"{number}")
        obstore.delete(server.bucket("bench"), f"library-{number}")
    up, alone = statistics.median(ours), statistics.median(library)
    return (f"| upload of {MEBIBYTES} MiB to S3 (SeaweedFS on the same machine); read back at "
            f"{statistics.median(reads):.0f} MiB/s, {max(memory):.0f} MiB of memory at most | {repeats} "
            f"| {up:.0f} MiB/s | {alone:.0f} MiB/s obstore's multipart upload | {up / alone:.2f} |")


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as home, SeaweedServer(Path(home)) as server:
        print(asyncio.run(measure(server, int(sys.argv[1]) if len(sys.argv) > 1 else 5)), flush=True)


if __name__ == "__main__":
    main()
