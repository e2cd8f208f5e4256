"""Metrics, rules, alerts and dashboards, against the real Prometheus."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import signal
import subprocess
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.daemon import Refused, RunningDaemon, eventually
from tests.support.ports import free_port
from tests.support.prometheus import CONFIG, Prometheus
from tests.support.workload import CountingProgram

if TYPE_CHECKING:
    from collections.abc import Iterator

GRAFANA = CONFIG.parent / "grafana"
TESTS = Path(__file__).parent.parent


def promtool(*words: str | Path) -> str:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def panels() -> dict[str, list[str]]:
    """The expressions of each panel of the dashboard."""
    board = json.loads((GRAFANA / "crd.json").read_text())
    return {panel["title"]: [target["expr"] for target in panel["targets"]]
            for panel in board["panels"] if panel["type"] != "row"}


def answerable(expression: str) -> str:
    """Fill in what Grafana would."""
    return (expression.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$target", ".*"))


def test_configuration_and_rules_are_sound_and_their_unit_tests_pass() -> None:
    promtool("check", "config", CONFIG / "prometheus.yml")
    assert promtool("test", "rules", TESTS / "prometheus" / "alerts.test.yml").count("SUCCESS") == 1


def test_every_alert_has_a_unit_test_in_which_it_fires() -> None:
    alerts = re.findall(r"- alert: (\w+)", (CONFIG / "crd.alerts.yml").read_text())
    tested = re.findall(r"alertname: (\w+)\n +exp_alerts:\n", (TESTS / "prometheus" / "alerts.test.yml").read_text())
    assert set(alerts) == set(tested)


def test_the_dashboard_is_what_its_generator_writes() -> None:
    built = runpy.run_path(str(GRAFANA / "generate.py"))["build"]()
    assert (GRAFANA / "crd.json").read_text() == built, "make dashboards"


@pytest.mark.root
def test_every_metric_follows_its_event(tmp_path: Path) -> None:
    config = f'[targets.counter]\npidfile = "{tmp_path}/program.pid"\nevery = "1d"\n'
    with CountingProgram(tmp_path) as program, RunningDaemon(tmp_path, config) as daemon:
        before = daemon.metrics()
        assert before['crd_checkpoints_total{engine="userspace",result="ok",target="counter"}'] == 0
        assert before['crd_last_checkpoint_success_timestamp_seconds{target="counter"}'] == 0
        image = daemon.crctl("checkpoint", "counter")
        doomed = daemon.crctl("checkpoint", "--pid", str(program.pid))
        with pytest.raises(Refused):
            daemon.crctl("checkpoint", "--pid", str(daemon.process.pid))  # it never takes itself
        [stored] = (daemon.state / "archive").rglob(f"{doomed['crid']:016x}.image")
        stored.write_bytes(stored.read_bytes()[:-1] + b"x")
        daemon.run_crctl("scrub")
        with pytest.raises(Refused):
            daemon.crctl("restart", str(image["crid"]), "--wait")  # its pid is in use
        program.kill()
        with pytest.raises(Refused):
            daemon.crctl("checkpoint", "counter")
        daemon.crctl("restart", str(image["crid"]), "--wait")
        seen = daemon.metrics()
        daemon.stop(signal.SIGTERM)
        daemon.start()
        again = daemon.metrics()
    ok = {"counter": image, "": doomed}
    for target, taken in ok.items():
        assert seen[f'crd_checkpoints_total{{engine="userspace",result="ok",target="{target}"}}'] == 1
        for name, key in (("crd_image_bytes_total", "image_bytes"), ("crd_image_stored_bytes_total", "stored_bytes"),
                          ("crd_checkpoint_memory_bytes_total", "memory_bytes"),
                          ("crd_checkpoint_stop_seconds_sum", "stop_seconds"),
                          ("crd_checkpoint_duration_seconds_sum", "duration_seconds")):
            assert seen[f'{name}{{target="{target}"}}'] == pytest.approx(taken[key]), name
        for name in ("crd_checkpoint_stop_seconds", "crd_checkpoint_duration_seconds"):
            assert seen[f'{name}_count{{target="{target}"}}'] == 1
            assert seen[f'{name}_bucket{{le="+Inf",target="{target}"}}'] == 1
    assert seen['crd_checkpoints_total{engine="userspace",result="failed",target="counter"}'] == 1
    assert seen['crd_checkpoint_failures_total{reason="target.not-found",target="counter"}'] == 1
    assert seen['crd_checkpoints_total{engine="userspace",result="refused",target=""}'] == 1
    assert seen["crd_targets"] == 1
    assert seen["crd_checkpoints_running"] == 0
    assert seen["crd_scrub_errors_total"] == 1
    assert seen["crd_last_scrub_timestamp_seconds"] > 1.7e9
    assert seen['crd_restart_requests_total{result="done"}'] == 1
    assert seen['crd_restart_requests_total{result="failed"}'] == 1
    assert seen["crd_restart_queue_length"] == seen["crd_restart_oldest_request_timestamp_seconds"] == 0
    assert seen["crd_restart_duration_seconds_count"] == 1
    store = f'{{store="{daemon.state}/archive"}}'
    assert seen[f"crd_archive_images{store}"] == 2
    assert seen[f"crd_archive_bytes{store}"] >= image["stored_bytes"] + doomed["stored_bytes"]
    assert seen[f"crd_archive_free_bytes{store}"] > 0
    assert {value for series, value in seen.items() if series.startswith("crd_engine_feature")} <= {0, 1}
    assert [series for series in seen if series.startswith("crd_build_info{")]
    last = 'crd_last_checkpoint_success_timestamp_seconds{target="counter"}'
    assert again[last] == seen[last] > 1.7e9, "a new daemon knows when the last image was taken"
    assert again["crd_last_scrub_timestamp_seconds"] > 1.7e9
    assert not [series for series in seen if "_created" in series]


@pytest.mark.root
def test_metrics_of_schedule_and_queue_follow_their_events(tmp_path: Path) -> None:
    config = f'[targets.ticking]\npidfile = "{tmp_path}/program.pid"\nevery = "1s"\n'
    due, skipped = (f'crd_checkpoint{what}target="ticking"}}' for what in (
        "_due_since_timestamp_seconds{", 's_total{engine="userspace",result="skipped",'))
    with CountingProgram(tmp_path) as program, RunningDaemon(tmp_path, config) as daemon:
        [image, *_] = eventually("an image", lambda: daemon.crctl("images"))
        seen = daemon.metrics()
        assert seen["crd_schedule_lag_seconds_count"] >= 1
        assert seen['crd_schedule_lag_seconds_bucket{le="+Inf"}'] == seen["crd_schedule_lag_seconds_count"]
        with daemon.without_workers():
            numbers = [daemon.crctl("restart", str(image["crid"]))["number"] for _ in range(2)]
            eventually("the first to be claimed",
                       lambda: daemon.crctl("request", "show", str(numbers[0]))["state"] == "running")
            seen = eventually("a run to be skipped", lambda: (now := daemon.metrics())[skipped] > seen[skipped] and now)
            assert seen[due] > 1.7e9
            assert seen["crd_checkpoints_running"] == 1
            assert seen["crd_restart_queue_length"] == 2
            assert seen["crd_restart_oldest_request_timestamp_seconds"] > 1.7e9
            daemon.crctl("request", "cancel", str(numbers[1]))
            seen = daemon.metrics()
            assert seen['crd_restart_requests_total{result="cancelled"}'] == 1
            assert seen["crd_restart_queue_length"] == 1
            assert seen["crd_restart_oldest_request_timestamp_seconds"] == 0
        eventually("an image again", lambda: daemon.metrics()[due] == 0)
        program.assert_unharmed()


@pytest.fixture
def small_state(tmp_path: Path) -> Iterator[Path]:
    """A state directory that is soon full."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m,mode=0700", "crd-test", state], check=True)
    yield state
    subprocess.run(["umount", "--lazy", state], check=True)


@pytest.mark.root
@pytest.mark.timeout(900)
def test_prometheus_scrapes_panels_show_and_alerts_fire_and_resolve(tmp_path: Path, small_state: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    config = f'[targets.counter]\npidfile = "{tmp_path}/program.pid"\nevery = "1s"\nkeep = "last=3"\n'
    daemon = RunningDaemon(tmp_path, config)
    daemon.environment["CRD_METRICS__LISTEN"] = address
    (tmp_path / "prometheus").mkdir()
    with CountingProgram(tmp_path) as program, daemon, Prometheus(tmp_path / "prometheus", address) as prometheus:
        def fires(alert: str) -> None:
            eventually(f"{alert} to fire", lambda: alert in prometheus.firing(), seconds=300)

        def resolves(*alerts: str) -> None:
            eventually(f"{alerts} to resolve", lambda: not {*alerts} & prometheus.firing(), seconds=300)

        eventually("images", lambda: len(daemon.crctl("images")) >= 2)
        [lint] = [promtool_metrics(f"http://{address}/metrics")]
        assert not lint, lint
        resolves("CrdDaemonDown", "CrdNoRecentImage")

        crid = str(daemon.crctl("images", "counter")[0]["crid"])
        daemon.crctl("pin", crid)
        program.kill()
        fires("CrdNoRecentImage")
        fires("CrdCheckpointsFailing")
        daemon.crctl("restart", crid, "--wait")
        resolves("CrdNoRecentImage", "CrdCheckpointsFailing")

        with daemon.without_workers():
            for _ in range(2):  # the first is claimed, and waits for its worker; the second waits for the first
                daemon.crctl("restart", crid)
            fires("CrdQueueStuck")
        fires("CrdRestartsFailing")  # the pid is in use
        resolves("CrdQueueStuck", "CrdRestartsFailing")

        filler = small_state / "filler"
        with suppress(OSError):  # an image may take some of it meanwhile
            filler.write_bytes(bytes(shutil.disk_usage(small_state).free))
        fires("CrdArchiveFilling")
        filler.unlink()
        resolves("CrdArchiveFilling")

        [stored] = (daemon.state / "archive").rglob(f"{int(crid):016x}.image")
        content = stored.read_bytes()
        stored.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        daemon.run_crctl("scrub")
        fires("CrdScrubErrors")
        stored.write_bytes(content)
        assert daemon.crctl("verify", crid)["image"]["state"] == "ok"
        for title, expressions in panels().items():
            for expression in expressions:
                eventually(f"data in {title}: {expression}", lambda e=expression: prometheus.query(answerable(e)))

        daemon.stop(signal.SIGKILL)
        fires("CrdDaemonDown")
        daemon.start()
        resolves("CrdDaemonDown")
        for rule in re.findall(r"record: (\S+)", (CONFIG / "crd.rules.yml").read_text()):
            eventually(f"{rule} to have values", lambda r=rule: prometheus.query(r), seconds=120)
        program.assert_unharmed()


def promtool_metrics(url: str) -> str:
    """What promtool has to say about what is scraped."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        content: Any = answer.read()
    done = subprocess.run(["promtool", "check", "metrics"], input=content, capture_output=True, check=False,
                          timeout=120)
    return (done.stdout + done.stderr).decode() if done.returncode else ""
