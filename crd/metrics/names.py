"""Every metric, its labels and its meaning (``interfaces.md`` section 5)."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

if TYPE_CHECKING:
    from prometheus_client.metrics import MetricWrapperBase

_STOP_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_DURATION_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)
_LAG_BUCKETS = (0.01, 0.1, 0.5, 1, 5, 10, 60, 300)
RESULTS = ("ok", "failed", "skipped", "refused")


class Metrics:
    """All metrics, in a registry of their own."""

    def __init__(self) -> None:
        """Declare them."""
        self.registry = registry = CollectorRegistry()
        target = ("target",)
        self.checkpoints = Counter("crd_checkpoints", "Checkpoints, by how they ended", ("target", "engine", "result"),
                                   registry=registry)
        self.failures = Counter("crd_checkpoint_failures", "Checkpoints that failed, by error code",
                                ("target", "reason"), registry=registry)
        self.stop_seconds = Histogram("crd_checkpoint_stop_seconds", "How long targets were stopped", target,
                                      buckets=_STOP_BUCKETS, registry=registry)
        self.duration_seconds = Histogram("crd_checkpoint_duration_seconds", "How long checkpoints took", target,
                                          buckets=_DURATION_BUCKETS, registry=registry)
        self.memory_bytes = Counter("crd_checkpoint_memory_bytes", "Memory read", target, registry=registry)
        self.image_bytes = Counter("crd_image_bytes", "Images, as streams", target, registry=registry)
        self.stored_bytes = Counter("crd_image_stored_bytes", "Images, as stored", target, registry=registry)
        self.last_success = Gauge("crd_last_checkpoint_success_timestamp_seconds", "When the last good image was taken",
                                  target, registry=registry)
        self.schedule_lag = Histogram("crd_schedule_lag_seconds", "How late checkpoints began", buckets=_LAG_BUCKETS,
                                      registry=registry)
        self.archive_bytes = Gauge("crd_archive_bytes", "What the archive holds", ("store",), registry=registry)
        self.archive_images = Gauge("crd_archive_images", "Images in the archive", ("store",), registry=registry)
        self.spool_bytes = Gauge("crd_archive_spool_bytes", "What waits in the spool for the store", ("store",),
                                 registry=registry)
        self.spool_objects = Gauge("crd_archive_spool_objects", "Objects that wait in the spool for the store",
                                   ("store",), registry=registry)
        self.archive_away = Gauge("crd_archive_away", "Whether the store behind the spool does not answer", ("store",),
                                  registry=registry)
        self.scrub_errors = Counter("crd_scrub_errors", "Damage found in the archive", registry=registry)
        self.last_scrub = Gauge("crd_last_scrub_timestamp_seconds", "When the archive was last read through",
                                registry=registry)
        self.requests = Counter("crd_restart_requests", "Restart requests, by how they ended", ("result",),
                                registry=registry)
        self.queue_length = Gauge("crd_restart_queue_length", "Restart requests not carried out yet", registry=registry)
        self.oldest_request = Gauge("crd_restart_oldest_request_timestamp_seconds",
                                    "When the oldest queued restart request was made, 0 if none", registry=registry)
        self.restart_seconds = Histogram("crd_restart_duration_seconds", "How long restarts took",
                                         buckets=_DURATION_BUCKETS, registry=registry)
        self.feature = Gauge("crd_engine_feature", "Whether the kernel and our privileges offer a feature",
                             ("feature",), registry=registry)
        self.build = Info("crd_build", "This version of crd", registry=registry)

    def of_targets(self) -> list[MetricWrapperBase]:
        """Return the metrics that have the label ``target``, always first."""
        return [self.checkpoints, self.failures, self.stop_seconds, self.duration_seconds, self.memory_bytes,
                self.image_bytes, self.stored_bytes, self.last_success]

    def remove_target(self, name: str) -> None:
        """Drop all series of a target that is no more, so that labels stay bounded."""
        for metric in self.of_targets():
            for labels in list(metric._metrics):
                if labels[0] == name:
                    with suppress(KeyError):
                        metric.remove(*labels)
