"""What a scrape costs when there are many targets, each with all of its series."""

from __future__ import annotations

import statistics
import time
import urllib.request
from typing import TYPE_CHECKING

import prometheus_client

from crd.metrics.exporter import Exporter
from crd.metrics.names import Metrics
from crd.metrics.target import DURATION_BUCKETS, STOP_BUCKETS

if TYPE_CHECKING:
    from collections.abc import Callable

TARGETS = 10_000
_SHARE = 20


def scrape(row: Callable[[str, int, str, str, str], None], n: int) -> None:
    """Measure it against prometheus_client's own text of the same histograms, of which it makes a twentieth."""
    metrics = Metrics()
    for number in range(TARGETS):
        metrics.add_target(f"target-{number:05d}")
    with Exporter("127.0.0.1:0", metrics.exposition) as exporter:
        ours = statistics.median(_seconds(lambda: urllib.request.urlopen(exporter.url).read()) for _ in range(n))
    registry = prometheus_client.CollectorRegistry()
    for name, buckets in (("stop", STOP_BUCKETS), ("duration", DURATION_BUCKETS)):
        histogram = prometheus_client.Histogram(name, name, ("target",), buckets=buckets, registry=registry)
        for number in range(TARGETS // _SHARE):
            histogram.labels(f"target-{number:05d}")
    theirs = _SHARE * statistics.median(_seconds(lambda: prometheus_client.generate_latest(registry)) for _ in range(n))
    row(f"scrape of {TARGETS} targets, from request to last byte", n, f"{ours * 1e3:.0f} ms",
        f"{theirs * 1e3:.0f} ms prometheus_client's text of their histograms", f"{ours / theirs:.2f}")


def _seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
