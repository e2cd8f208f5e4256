"""What is asked of a daemon whose catalog has a million images takes, from the call over the socket to its reply.

``python -m tests.bench.served_catalog`` runs it alone, as root.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from crd.api.client import Client
from crd.catalog.catalog import Catalog
from tests.bench.catalog import MANY, fill
from tests.bench.many_targets import cpu_seconds
from tests.support.daemon import RunningDaemon
from tests.support.postgres import BIN, PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable

_ALLOWED_SECONDS = 0.1
_CONFIG = """
[catalog]
host = "here"
{url}
[targets.target-0]
pid = 1
every = "1d"
keep = "last=2000 hourly=24 daily=7 weekly=4 monthly=12"
"""
"""The rules look at each image and keep all of them: their objects are not there."""


def served_catalog(row: Callable[[str, int, str, str, str], None], n: int, *, many: int = MANY) -> None:
    """Measure SQLite, and PostgreSQL where it is installed."""
    with tempfile.TemporaryDirectory(prefix="crd-bench-") as name:
        home = Path(name)
        (home / "state").mkdir(mode=0o700)
        _measure(row, n, many, "sqlite", home, f"sqlite:///{home}/state/catalog.db", "")
    if BIN.exists():
        with tempfile.TemporaryDirectory(prefix="crd-bench-") as name, PostgresServer() as server:
            url = server.database("served")
            _measure(row, n, many, "postgresql", Path(name), url, f'url = "{url}"')


def _measure(row: Callable[[str, int, str, str, str], None], n: int, many: int, kind: str, home: Path, url: str,
             setting: str) -> None:
    asyncio.run(_filled(url, many, kind))
    with RunningDaemon(home, _CONFIG.format(url=setting)) as daemon, Client(daemon.socket) as client:
        assert daemon.process
        pid = daemon.process.pid
        calls: dict[str, Callable[[], object]] = {
            "crctl images --limit 50": lambda: client.call("ListImages", limit=50),
            "a page of crctl images (500)": lambda: client.call("ListImages"),
            "crctl show CRID": lambda: client.call("GetImage", reference=str(many // 2)),
            "crctl show TARGET@latest": lambda: client.call("GetImage", reference="target-1@latest"),
            "retention of a target with 1000 images": lambda: client.call("Forget", target="target-0", dry_run=True),
            "crctl status": lambda: client.call("GetStatus"),
        }
        for what, call in calls.items():
            call()
            before = cpu_seconds(pid)
            seconds = sorted(_seconds(call) for _ in range(n))
            cpu = (cpu_seconds(pid) - before) / n
            median, late = seconds[n // 2], seconds[min(n - 1, n * 99 // 100)]
            row(f"{kind}, {many} images: {what}, p50 / p99 / processor time of the daemon", n,
                f"{median * 1e3:.1f} / {late * 1e3:.1f} / {cpu * 1e3:.1f} ms",
                f"{_ALLOWED_SECONDS * 1e3:.0f} ms are allowed", f"{late / _ALLOWED_SECONDS:.2f}")


async def _filled(url: str, many: int, kind: str) -> None:
    async with await Catalog.open(url, "here") as opened:
        await fill(opened, many, kind)


def _seconds(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


if __name__ == "__main__":
    served_catalog(lambda *cells: print(" | ".join(map(str, cells)), flush=True), 100)
