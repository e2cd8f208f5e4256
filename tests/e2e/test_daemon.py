"""The daemon as its users meet it: schedule, images, queue, and what goes wrong."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.daemon import BIN, PATIENCE_SECONDS, Refused, RunningDaemon, eventually
from tests.support.workload import CountingProgram

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with RunningDaemon(tmp_path) as running:
        yield running


@pytest.fixture
def program(tmp_path: Path) -> Iterator[CountingProgram]:
    with CountingProgram(tmp_path) as running:
        yield running


def test_the_schedule_takes_images_and_a_restart_counts_on(tmp_path: Path, program: CountingProgram) -> None:
    config = f'[targets.counter]\npidfile = "{tmp_path}/program.pid"\nevery = "1s"\n'
    with RunningDaemon(tmp_path, config) as daemon:
        eventually("three images", lambda: len(daemon.crctl("images", "counter")) >= 3)
        images = daemon.crctl("images", "counter")
        program.kill()
        oldest = images[-1]
        before = program.counts()
        request = daemon.crctl("restart", str(oldest["crid"]), "--wait")
        assert request["state"] == "done", request
        assert request["root_pid"] == program.pid
        program.assert_unharmed()
        program.assert_counted_without_gap_since(len(before))
        assert program.counts()[len(before)] < before[-1]
        assert [image["crid"] for image in images] == sorted((i["crid"] for i in images), reverse=True)
        for image in images:
            assert image["target"] == "counter"
            assert image["pid"] == program.pid
            assert 0 < image["stored_bytes"] < image["image_bytes"]
            assert image["header"]["magic"] == "0x00feed0cc0a2d200"
            assert image["header"]["release"] == os.uname().release


def test_a_checkpoint_on_request_by_pid(daemon: RunningDaemon, program: CountingProgram) -> None:
    image = daemon.crctl("checkpoint", "--pid", str(program.pid))
    program.assert_unharmed()
    assert daemon.crctl("show", str(image["crid"]))["digest"] == image["digest"]


def test_kill_ends_the_target_once_the_image_is_safe(daemon: RunningDaemon, program: CountingProgram) -> None:
    image = daemon.crctl("checkpoint", "--pid", str(program.pid), "--kill")
    program.process.wait(timeout=PATIENCE_SECONDS)
    lines = len(program.counts())
    daemon.crctl("restart", str(image["crid"]), "--wait")
    eventually("it to count on", lambda: len(program.counts()) > lines + 3)
    program.assert_counted_without_gap_since(0)


def test_stop_leaves_the_target_stopped(daemon: RunningDaemon, program: CountingProgram) -> None:
    daemon.crctl("checkpoint", "--pid", str(program.pid), "--stop")
    eventually("it to stop", lambda: program.status()["State"][0] == "T")
    os.kill(program.pid, signal.SIGCONT)
    program.assert_unharmed()


def kernel_thread() -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (entry / "stat").read_text().rpartition(")")[2].split()[1] == "2":
            return int(entry.name)
    pytest.fail("this kernel has no kernel threads")


def test_pids_that_cannot_be_checkpointed(daemon: RunningDaemon) -> None:
    assert daemon.process is not None
    free = int(Path("/proc/sys/kernel/pid_max").read_text()) - 1
    for pid, status in ((free, 11), (kernel_thread(), 13), (daemon.process.pid, 13)):
        with pytest.raises(Refused) as refused:
            daemon.crctl("checkpoint", "--pid", str(pid))
        assert refused.value.status == status
        assert refused.value.error["hint"]
    assert daemon.crctl("images") == []


def test_a_program_under_a_debugger_is_refused(daemon: RunningDaemon, program: CountingProgram) -> None:
    tracer = subprocess.Popen(["strace", "-qq", "-o", os.devnull, "-p", str(program.pid)], stderr=subprocess.DEVNULL)
    try:
        eventually("strace to attach", lambda: program.status()["TracerPid"] != "0")
        with pytest.raises(Refused) as refused:
            daemon.crctl("checkpoint", "--pid", str(program.pid))
        assert "strace" in str(refused.value.error)
    finally:
        tracer.terminate()
        tracer.wait()
    program.assert_unharmed()


def test_a_pid_in_use_is_named(daemon: RunningDaemon, program: CountingProgram) -> None:
    image = daemon.crctl("checkpoint", "--pid", str(program.pid))
    with pytest.raises(Refused) as refused:
        daemon.crctl("restart", str(image["crid"]), "--wait")
    assert refused.value.error["error"] == "restart.pid-in-use"
    assert str(program.pid) in refused.value.error["message"]
    assert refused.value.status == 14
    program.assert_unharmed()


def test_a_damaged_image_is_found_before_any_task_is_made(daemon: RunningDaemon, program: CountingProgram) -> None:
    image = daemon.crctl("checkpoint", "--pid", str(program.pid), "--kill")
    program.process.wait(timeout=PATIENCE_SECONDS)
    [stored] = [path for path in daemon.state.rglob("*") if path.is_file() and f"{image['crid']:016x}" in path.name]
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 0x10
    stored.write_bytes(content)
    with pytest.raises(Refused) as refused:
        daemon.crctl("restart", str(image["crid"]), "--wait")
    assert refused.value.error["error"] == "archive.blob-corrupt"
    assert not program.is_there()


def test_a_missing_file_is_named(daemon: RunningDaemon, program: CountingProgram) -> None:
    image = daemon.crctl("checkpoint", "--pid", str(program.pid), "--kill")
    program.process.wait(timeout=PATIENCE_SECONDS)
    program.log.rename(program.home / "elsewhere")
    with pytest.raises(Refused) as refused:
        daemon.crctl("restart", str(image["crid"]), "--wait")
    assert refused.value.error["error"] == "restart.resource-changed"
    assert "count.log" in refused.value.error["message"]
    assert not program.is_there()
    assert not program.log.exists()


def test_references_that_fit_nothing(daemon: RunningDaemon) -> None:
    for words, status in ((("show", "4711"), 11), (("show", "nobody@latest"), 11), (("restart", "4711"), 11),
                          (("request", "show", "9"), 11), (("request", "cancel", "9"), 11),
                          (("target", "remove", "nobody"), 11), (("show", "???"), 2)):
        with pytest.raises(Refused) as refused:
            daemon.crctl(*words)
        assert refused.value.status == status, words


def test_targets_can_be_added_held_and_removed(daemon: RunningDaemon, program: CountingProgram) -> None:
    daemon.crctl("target", "add", "mine", "--pid", str(program.pid), "--every", "1s")
    eventually("an image", lambda: daemon.crctl("images", "mine"))
    daemon.crctl("target", "hold", "mine")
    assert daemon.crctl("targets")[0]["held"] is True
    daemon.crctl("target", "resume", "mine")
    with pytest.raises(Refused) as refused:
        daemon.crctl("target", "add", "mine", "--pid", "1", "--every", "1h")
    assert refused.value.status == 14
    daemon.crctl("target", "remove", "mine")
    assert daemon.crctl("targets") == []
    program.assert_unharmed()


def test_an_archive_without_space_keeps_nothing_and_harms_nobody(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "crd-test", state], check=True)
    try:
        with CountingProgram(tmp_path, ballast_mib=1) as program, RunningDaemon(tmp_path) as daemon:
            (state / "filler").write_bytes(bytes(shutil.disk_usage(state).free - 150_000))
            with pytest.raises(Refused) as refused:
                daemon.crctl("checkpoint", "--pid", str(program.pid))
            assert refused.value.error["error"] == "archive.full"
            program.assert_unharmed()
            assert daemon.crctl("images") == []
            (state / "filler").unlink()
            image = daemon.crctl("checkpoint", "--pid", str(program.pid))
            assert [stored["crid"] for stored in daemon.crctl("images")] == [image["crid"]]
    finally:
        subprocess.run(["umount", state], check=True)


def test_a_second_daemon_on_the_same_state_is_refused(daemon: RunningDaemon) -> None:
    second = subprocess.run([BIN / "crd", "run", "--config", daemon.config], env=daemon.environment,
                            capture_output=True, text=True, check=False, timeout=60)
    assert second.returncode == 14
    assert str(daemon.state) in second.stderr
    assert daemon.crctl("status")["pid"] == (daemon.process and daemon.process.pid)


def test_settings_that_are_wrong_stop_the_start_with_the_line(tmp_path: Path) -> None:
    daemon = RunningDaemon(tmp_path, "[daemon]\n\n[archive]\nlevle = 3\n")
    refused = subprocess.run([BIN / "crd", "run", "--config", daemon.config], env=daemon.environment,
                             capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode == 2
    assert f"{daemon.config}:4" in refused.stderr
    assert "level" in refused.stderr
    assert not daemon.state.exists()


@pytest.mark.parametrize("rubbish", [b"\0", b"{}\0", b"[1]\0", b"GET / HTTP/1.1\r\n\r\n\0", os.urandom(4096),
                                     b'{"method": 7}\0', b'{"method":"io.crd.GetImage","parameters":{"reference":7}}\0',
                                     b"{" * 2_000_000])
def test_rubbish_on_the_socket_costs_only_its_sender(daemon: RunningDaemon, rubbish: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(daemon.socket))
        try:
            client.sendall(rubbish)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert daemon.crctl("status")["version"]


def test_a_clean_stop_leaves_no_target_stopped(daemon: RunningDaemon, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    with CountingProgram(tmp_path / "large", ballast_mib=300) as program:
        taken = subprocess.Popen([BIN / "crctl", "checkpoint", "--pid", str(program.pid)], env=daemon.environment,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually("the checkpoint to begin", lambda: daemon.crctl("status")["running"])
        assert daemon.stop(signal.SIGTERM) == 0
        taken.wait(timeout=60)
        program.assert_unharmed()


def test_a_clean_stop_finishes_the_restart_under_way(daemon: RunningDaemon, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    with CountingProgram(tmp_path / "large", ballast_mib=100) as program:
        image = daemon.crctl("checkpoint", "--pid", str(program.pid), "--kill")
        program.process.wait(timeout=PATIENCE_SECONDS)
        number = str(daemon.crctl("restart", str(image["crid"]))["number"])
        eventually("the restart to begin", lambda: daemon.crctl("request", "show", number)["state"] != "queued")
        assert daemon.stop(signal.SIGTERM) == 0
        daemon.start()
        assert daemon.crctl("request", "show", number)["state"] == "done"
        program.assert_unharmed()


def test_a_killed_daemon_harms_no_target_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    chance = random.Random(7)
    with CountingProgram(tmp_path, ballast_mib=40) as program, RunningDaemon(tmp_path) as daemon:
        for _ in range(8):
            running = subprocess.Popen([BIN / "crctl", "checkpoint", "--pid", str(program.pid)],
                                       env=daemon.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with suppress(subprocess.TimeoutExpired):
                running.wait(timeout=chance.uniform(0.05, 0.4))
            daemon.stop(signal.SIGKILL)
            running.wait(timeout=60)
            program.assert_unharmed()
            daemon.start()
            stored = [path for path in (daemon.state / "archive").rglob("*") if path.is_file()]
            known = daemon.crctl("images")
            for image in known:
                assert any(f"{image['crid']:016x}" in path.name for path in stored)
        program.assert_counted_without_gap_since(0)


def ended_of(daemon: RunningDaemon, request: dict[str, Any]) -> dict[str, Any]:
    """Wait until a request has ended, and return it."""
    def ask() -> dict[str, Any] | None:
        found: dict[str, Any] = daemon.crctl("request", "show", str(request["number"]))
        return found if found["state"] in {"done", "failed"} else None

    found: dict[str, Any] = eventually("the request to end", ask)
    return found


@pytest.mark.timeout(1200)
def test_an_accepted_restart_is_carried_out_once_or_fails(tmp_path: Path, program: CountingProgram) -> None:
    chance = random.Random(11)
    outcomes = set()
    with RunningDaemon(tmp_path) as daemon:
        image = daemon.crctl("checkpoint", "--pid", str(program.pid), "--kill")
        program.process.wait(timeout=PATIENCE_SECONDS)
        for seconds in (*(chance.uniform(0, 0.5) for _ in range(11)), None):
            request = daemon.crctl("restart", str(image["crid"]))
            if seconds is None:  # as long as it takes: each time before may have been too short for a slow machine
                ended_of(daemon, request)
            else:
                time.sleep(seconds)
            daemon.stop(signal.SIGKILL)
            daemon.start()
            ended = ended_of(daemon, request)
            outcomes.add(ended["state"])
            assert program.is_there() == (ended["state"] == "done"), ended
            if program.is_there():
                program.assert_unharmed()
                program.kill()
            daemon.stop(signal.SIGTERM)
            daemon.start()
            assert not program.is_there(), "carried out twice"
    assert "done" in outcomes


def test_a_queued_request_can_be_cancelled_but_not_an_ended_one(daemon: RunningDaemon,
                                                              program: CountingProgram) -> None:
    image = daemon.crctl("checkpoint", "--pid", str(program.pid), "--kill")
    program.process.wait(timeout=PATIENCE_SECONDS)
    done = daemon.crctl("restart", str(image["crid"]), "--wait")
    with pytest.raises(Refused) as refused:
        daemon.crctl("request", "cancel", str(done["number"]))
    assert refused.value.status == 14


def test_metrics_count_what_happened(tmp_path: Path, program: CountingProgram) -> None:
    config = f'[targets.counter]\npid = {program.pid}\nevery = "1h"\n'
    with RunningDaemon(tmp_path, config) as daemon:
        image = daemon.crctl("checkpoint", "counter")
        program.kill()
        with pytest.raises(Refused):
            daemon.crctl("checkpoint", "counter")
        daemon.crctl("restart", "counter@latest", "--wait")
        seen = daemon.metrics()
    assert seen['crd_checkpoints_total{engine="userspace",result="ok",target="counter"}'] >= 1
    assert seen['crd_checkpoint_failures_total{reason="target.not-found",target="counter"}'] >= 1
    assert seen['crd_checkpoint_stop_seconds_count{target="counter"}'] >= 1
    assert seen['crd_image_bytes_total{target="counter"}'] >= image["image_bytes"]
    assert seen['crd_image_stored_bytes_total{target="counter"}'] >= image["stored_bytes"]
    assert seen['crd_last_checkpoint_success_timestamp_seconds{target="counter"}'] > 1.7e9
    assert seen['crd_restart_requests_total{result="done"}'] == 1
    assert seen["crd_restart_queue_length"] == 0
    assert seen["crd_restart_duration_seconds_count"] == 1
    assert any(series.startswith("crd_archive_bytes") and value > 0 for series, value in seen.items())
    assert any(series.startswith("crd_build_info") for series in seen)
    assert any(series.startswith("crd_engine_feature") for series in seen)
