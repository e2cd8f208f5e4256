"""Every metric, its labels and its meaning; those of a target are in ``target.py``."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)

from crd.metrics.target import DURATION_BUCKETS, FAMILIES, TargetMetrics

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

_LAG_BUCKETS = (0.01, 0.05, 0.1, 0.2, 0.5, 1, 5, 10, 60, 300)
_NO_TARGET = ""
REQUEST_RESULTS = ("done", "failed", "cancelled")
SERVED_RESULTS = ("done", "failed")


class Metrics:
    """All metrics.

    Attributes:
        engine: that takes images; to be set before there are targets.
    """

    def __init__(self) -> None:
        """Declare them."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each of ours, and nobody asks for it
        self.engine = "userspace"
        self._targets: dict[str, TargetMetrics] = {}
        self.registry = registry = CollectorRegistry()
        self.running = Gauge("crd_checkpoints_running", "Checkpoints under way or waiting for a worker",
                             registry=registry)
        self.schedule_lag = Histogram("crd_schedule_lag_seconds",
                                      "From when checkpoints were due until their turn had come",
                                      buckets=_LAG_BUCKETS, registry=registry)
        self.archive_bytes = Gauge("crd_archive_bytes", "What the archive holds", ("store",), registry=registry)
        self.archive_images = Gauge("crd_archive_images", "Images in the archive", ("store",), registry=registry)
        self.archive_free = Gauge("crd_archive_free_bytes", "What the archive, or the spool before it, has room for",
                                  ("store",), registry=registry)
        self.spool_bytes = Gauge("crd_archive_spool_bytes", "What waits in the spool for the store", ("store",),
                                 registry=registry)
        self.spool_objects = Gauge("crd_archive_spool_objects", "Objects that wait in the spool for the store",
                                   ("store",), registry=registry)
        self.archive_away = Gauge("crd_archive_away", "Whether the store behind the spool does not answer", ("store",),
                                  registry=registry)
        self.scrub_errors = Counter("crd_scrub_errors", "Damage found in the archive", registry=registry)
        self.last_scrub = Gauge("crd_last_scrub_timestamp_seconds", "When an image was last checked, 0 if never",
                                registry=registry)
        self.requests = Counter("crd_restart_requests", "Restart requests, by how they ended", ("result",),
                                registry=registry)
        for result in REQUEST_RESULTS:
            self.requests.labels(result)
        self.served = Counter("crd_served_calls", "Calls of programs under crctl run, by how they ended", ("result",),
                              registry=registry)
        for result in SERVED_RESULTS:
            self.served.labels(result)
        self.queue_length = Gauge("crd_restart_queue_length", "Restart requests not carried out yet", registry=registry)
        self.oldest_request = Gauge("crd_restart_oldest_request_timestamp_seconds",
                                    "When the oldest queued restart request was made, 0 if none", registry=registry)
        self.restart_seconds = Histogram("crd_restart_duration_seconds", "How long restarts took",
                                         buckets=DURATION_BUCKETS, registry=registry)
        self.feature = Gauge("crd_engine_feature", "Whether the kernel and our privileges offer a feature",
                             ("feature",), registry=registry)
        self.build = Info("crd_build", "This version of crd", registry=registry)
        Gauge("crd_targets", "Targets, those that are held too", registry=registry).set_function(
            lambda: len(self._targets.keys() - {_NO_TARGET}))

    def add_target(self, name: str, last_image_at: datetime | None = None) -> None:
        """Begin with a target, unless it is known; of earlier times only its last good image counts."""
        if name not in self._targets:
            last_success = last_image_at.timestamp() if last_image_at else 0.0
            self._targets[name] = TargetMetrics(name, self.engine, last_success=last_success)

    def remove_target(self, name: str) -> None:
        """Drop all series of a target that is no more, so that labels stay bounded."""
        self._targets.pop(name, None)

    @contextmanager
    def of(self, name: str | None) -> Iterator[TargetMetrics]:
        """Note an event of a target; None: of a process that belongs to none, which has an empty label.

        Of a target that is no more it comes to nothing.
        """
        if name is None:
            name = _NO_TARGET
            self.add_target(name)
        target = self._targets.get(name) or TargetMetrics(name, self.engine)
        yield target
        target.render()

    def exposition(self) -> list[bytes]:
        """Return the text that Prometheus reads, in pieces; from any thread, and with little work for each target."""
        targets = [target.texts for target in list(self._targets.values())]
        pieces = [generate_latest(self.registry)]
        for (name, kind, meaning), *texts in zip(FAMILIES, *targets, strict=True):
            pieces.append(f"# HELP {name} {meaning}\n# TYPE {name} {kind}\n".encode())
            pieces.append(b"".join(texts))
        return pieces
