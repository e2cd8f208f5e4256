"""The metrics: named as the contract says, and bounded."""

from __future__ import annotations

import re
import urllib.request

import pytest
from prometheus_client import generate_latest

from crd.errors import SettingsError
from crd.metrics.exporter import Exporter
from crd.metrics.names import Metrics

CONTRACT = [
    "crd_checkpoints_total", "crd_checkpoint_failures_total", "crd_checkpoint_stop_seconds",
    "crd_checkpoint_duration_seconds", "crd_checkpoint_memory_bytes_total", "crd_image_bytes_total",
    "crd_image_stored_bytes_total", "crd_last_checkpoint_success_timestamp_seconds", "crd_schedule_lag_seconds",
    "crd_archive_bytes", "crd_archive_images", "crd_archive_spool_bytes", "crd_archive_spool_objects",
    "crd_archive_away", "crd_scrub_errors_total", "crd_last_scrub_timestamp_seconds",
    "crd_restart_requests_total", "crd_restart_queue_length", "crd_restart_oldest_request_timestamp_seconds",
    "crd_restart_duration_seconds", "crd_engine_feature", "crd_build_info",
]


def touched() -> Metrics:
    metrics = Metrics()
    metrics.checkpoints.labels("web", "userspace", "ok").inc()
    metrics.failures.labels("web", "target.gone").inc()
    for metric in (metrics.stop_seconds, metrics.duration_seconds):
        metric.labels("web").observe(0.01)
    for metric in (metrics.memory_bytes, metrics.image_bytes, metrics.stored_bytes):
        metric.labels("web").inc(5)
    metrics.last_success.labels("web").set(1)
    metrics.archive_bytes.labels("here").set(1)
    for gauge in (metrics.archive_images, metrics.spool_bytes, metrics.spool_objects, metrics.archive_away):
        gauge.labels("here").set(1)
    metrics.requests.labels("done").inc()
    metrics.feature.labels("ptrace").set(1)
    return metrics


def names(text: str) -> set[str]:
    return {re.sub(r"_(bucket|sum|count|created)$", "", re.split(r"[{ ]", line)[0])
            for line in text.splitlines() if not line.startswith("#")}


def test_every_metric_of_the_contract_is_there() -> None:
    assert set(CONTRACT) <= names(generate_latest(touched().registry).decode())


def test_a_removed_targets_series_go_away() -> None:
    metrics = touched()
    metrics.checkpoints.labels("other", "userspace", "ok").inc()
    metrics.remove_target("web")
    text = generate_latest(metrics.registry).decode()
    assert 'target="web"' not in text
    assert 'target="other"' in text


def test_the_exporter_serves_them() -> None:
    with (Exporter("127.0.0.1:0", touched().registry) as exporter,
          urllib.request.urlopen(exporter.url, timeout=10) as answer):
        assert b"crd_checkpoints_total" in answer.read()


def test_an_empty_address_turns_it_off() -> None:
    with Exporter("", Metrics().registry) as exporter:
        assert exporter.url == ""


def test_an_address_in_use_is_refused() -> None:
    with Exporter("127.0.0.1:0", Metrics().registry) as exporter:
        port = exporter.url.split(":")[2].split("/")[0]
        with pytest.raises(SettingsError, match=port):
            Exporter(f"127.0.0.1:{port}", Metrics().registry)
