"""The metrics: named as the contract says, and bounded."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
import urllib.request
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from crd.errors import SettingsError
from crd.metrics.exporter import Exporter
from crd.metrics.names import Metrics
from crd.metrics.target import Histogram
from tests.support.daemon import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTRACT = {
    "crd_checkpoints": "counter", "crd_checkpoint_failures": "counter", "crd_checkpoint_stop_seconds": "histogram",
    "crd_checkpoint_duration_seconds": "histogram", "crd_checkpoint_memory_bytes": "counter",
    "crd_image_bytes": "counter", "crd_image_stored_bytes": "counter",
    "crd_last_checkpoint_success_timestamp_seconds": "gauge", "crd_checkpoint_due_since_timestamp_seconds": "gauge",
    "crd_schedule_lag_seconds": "histogram", "crd_checkpoints_running": "gauge", "crd_targets": "gauge",
    "crd_archive_bytes": "gauge", "crd_archive_images": "gauge", "crd_archive_free_bytes": "gauge",
    "crd_archive_spool_bytes": "gauge", "crd_archive_spool_objects": "gauge", "crd_archive_away": "gauge",
    "crd_scrub_errors": "counter", "crd_last_scrub_timestamp_seconds": "gauge", "crd_restart_requests": "counter",
    "crd_served_calls": "counter", "crd_restart_queue_length": "gauge",
    "crd_restart_oldest_request_timestamp_seconds": "gauge",
    "crd_restart_duration_seconds": "histogram", "crd_engine_feature": "gauge", "crd_build_info": "gauge",
}


def test_the_engine_that_takes_the_images_is_told() -> None:
    metrics = Metrics()
    metrics.engine = "kernel"
    metrics.add_target("web")
    assert 'crd_checkpoints_total{engine="kernel",result="ok",target="web"} 0' in text(metrics)


def touched() -> Metrics:
    metrics = Metrics()
    metrics.add_target("web")
    with metrics.of("web") as target:
        target.results["ok"] += 2
        target.failures["target.gone"] += 1
        for value in (0.0004, 0.0005, 0.3, 7):
            target.stop_seconds.observe(value)
        target.stored_bytes += 5
    for gauge in (metrics.archive_bytes, metrics.archive_images, metrics.archive_free, metrics.spool_bytes,
                  metrics.spool_objects, metrics.archive_away):
        gauge.labels("here").set(1)
    metrics.feature.labels("ptrace").set(1)
    return metrics


def text(metrics: Metrics) -> str:
    return b"".join(metrics.exposition()).decode()


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Every series, as the reference parser reads it: its name, then its labels in order."""
    return {(sample.name, *(f"{key}={value}" for key, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text(metrics)) for sample in family.samples}


def test_every_metric_is_one_of_the_contract_and_has_series() -> None:
    found = {family.name: family for family in text_string_to_metric_families(text(touched()))}
    assert {name: family.type for name, family in found.items()} == CONTRACT
    assert all(family.samples and family.documentation for family in found.values())


def test_a_targets_events_are_in_its_series() -> None:
    seen = samples(touched())
    assert seen["crd_checkpoints_total", "engine=userspace", "result=ok", "target=web"] == 2
    assert seen["crd_checkpoints_total", "engine=userspace", "result=failed", "target=web"] == 0
    assert seen["crd_checkpoint_failures_total", "reason=target.gone", "target=web"] == 1
    buckets = {key[1]: value for key, value in seen.items() if key[0] == "crd_checkpoint_stop_seconds_bucket"}
    assert (buckets["le=0.0005"], buckets["le=0.2"], buckets["le=0.5"], buckets["le=2.0"], buckets["le=+Inf"]) == (
        2, 2, 3, 3, 4)
    assert seen["crd_checkpoint_stop_seconds_count", "target=web"] == 4
    assert seen["crd_checkpoint_stop_seconds_sum", "target=web"] == pytest.approx(7.3009)
    assert seen["crd_image_stored_bytes_total", "target=web"] == 5
    assert seen["crd_targets",] == 1


def test_a_histogram_counts_as_the_library_does() -> None:
    bounds = (0.1, 1, 5)
    registry = CollectorRegistry()
    theirs, ours = prometheus_client.Histogram("x", "x", buckets=bounds, registry=registry), Histogram.of(bounds)
    for value in (0, 0.1, 0.10001, 1, 4.9, 5, 5.1, 1e9):
        theirs.observe(value)
        ours.observe(value)
    expected = {(sample.name, sample.labels.get("le")): sample.value for family in registry.collect()
                for sample in family.samples if not sample.name.endswith("_created")}
    found = {(sample.name, sample.labels.get("le")): sample.value
             for family in text_string_to_metric_families("# TYPE x histogram\n" + ours.text("x", 'a="b"'))
             for sample in family.samples}
    assert found == expected


def test_a_target_that_had_an_image_before_says_when() -> None:
    metrics = Metrics()
    metrics.add_target("web", datetime.fromtimestamp(1_790_000_000, UTC))
    metrics.add_target("new")
    seen = samples(metrics)
    assert seen["crd_last_checkpoint_success_timestamp_seconds", "target=web"] == 1_790_000_000
    assert seen["crd_last_checkpoint_success_timestamp_seconds", "target=new"] == 0


def test_processes_that_belong_to_no_target_share_an_empty_label() -> None:
    metrics = Metrics()
    assert 'target=""' not in text(metrics)
    with metrics.of(None) as target:
        target.results["ok"] += 1
    assert samples(metrics)["crd_checkpoints_total", "engine=userspace", "result=ok", "target="] == 1
    assert samples(metrics)["crd_targets",] == 0


def test_a_removed_targets_series_go_away_and_do_not_come_back() -> None:
    metrics = touched()
    metrics.add_target("other")
    metrics.remove_target("web")
    with metrics.of("web") as late:
        late.results["ok"] += 1
    assert 'target="web"' not in text(metrics)
    assert 'target="other"' in text(metrics)


def ask(url: str, request: bytes) -> bytes:
    """Send raw bytes to the exporter, and return all that comes until it hangs up."""
    host, _, port = url.removeprefix("http://").removesuffix("/metrics").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(request)
        answer = b""
        with suppress(ConnectionResetError):
            while chunk := connection.recv(1 << 16):
                answer += chunk
        return answer


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    with Exporter("127.0.0.1:0", touched().exposition) as running:
        yield running


def test_the_exporter_serves_them(exporter: Exporter) -> None:
    with urllib.request.urlopen(exporter.url, timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        content = answer.read()
    assert b"crd_checkpoints_total" in content
    head, _, body = ask(exporter.url, b"HEAD /metrics?debug=1 HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
    assert b" 200 OK" in head
    assert not body


@pytest.mark.parametrize(("request_bytes", "status"), [
    (b"GET / HTTP/1.1\r\n\r\n", b" 404 "), (b"GET /etc/passwd HTTP/1.1\r\n\r\n", b" 404 "),
    (b"POST /metrics HTTP/1.1\r\n\r\n", b" 405 "), (b"\r\n\r\n", b" 405 "),
    (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20_000, b""), (b"\xff\0" * 40 + b"\n\n", b" 405 "),
])
def test_other_requests_are_refused(exporter: Exporter, request_bytes: bytes, status: bytes) -> None:
    assert status in ask(exporter.url, request_bytes)[:20]
    assert b" 200 OK" in ask(exporter.url, b"GET /metrics HTTP/1.1\r\n\r\n")[:20]


def test_peers_that_say_nothing_do_not_keep_others_out_for_ever(exporter: Exporter) -> None:
    host, _, port = exporter.url.removeprefix("http://").removesuffix("/metrics").rpartition(":")
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
        eventually("a scrape to be answered", lambda: b" 200 OK" in ask(exporter.url, b"GET /metrics HTTP/1.1\r\n\r\n"))
    assert threading.active_count() < 60


def test_without_descriptors_it_does_not_ask_for_connections_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def accept(_listener: socket.socket) -> tuple[socket.socket, object]:
        tried.append(errno.EMFILE)
        raise OSError(errno.EMFILE, "Too many open files")

    with Exporter("127.0.0.1:0", touched().exposition) as exporter, monkeypatch.context() as patched:
        patched.setattr(socket.socket, "accept", accept)
        host, _, port = exporter.url.removeprefix("http://").removesuffix("/metrics").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=60):
            eventually("it to try", lambda: tried)
            time.sleep(0.3)
            assert len(tried) < 5
            patched.undo()
            assert b" 200 OK" in ask(exporter.url, b"GET /metrics HTTP/1.1\r\n\r\n")[:20]


def test_an_empty_address_turns_it_off() -> None:
    with Exporter("", Metrics().exposition) as exporter:
        assert exporter.url == ""


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
def test_an_address_in_use_is_refused(address: str) -> None:
    with Exporter(f"{address}:0", Metrics().exposition) as exporter:
        port = exporter.url.rpartition(":")[2].split("/")[0]
        with pytest.raises(SettingsError, match=port):
            Exporter(f"{address}:{port}", Metrics().exposition)


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
def test_a_socket_that_was_passed_is_used_if_it_is_the_right_one(address: str) -> None:
    with Exporter(f"{address}:0", Metrics().exposition) as before:
        assert before.fd is not None
        kept = os.dup(before.fd)
    where = before.url.split("/")[2]
    with Exporter(where, Metrics().exposition, os.dup(kept)) as exporter:
        assert exporter.fd is not None
        assert os.fstat(exporter.fd).st_ino == os.fstat(kept).st_ino
        assert exporter.url == before.url
        with urllib.request.urlopen(exporter.url) as answer:
            assert answer.status == 200
    with Exporter(f"{address}:0", Metrics().exposition, os.dup(kept)) as exporter:
        assert exporter.fd is not None
        assert os.fstat(exporter.fd).st_ino != os.fstat(kept).st_ino
    unwanted = os.dup(kept)
    with Exporter("", Metrics().exposition, unwanted) as exporter:
        assert exporter.fd is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(unwanted)
    os.close(kept)
