"""What breaks around the daemon: disks, locks, memory, and too much asked at once; nobody is harmed by it."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

from crd.api.client import Client
from tests.support.daemon import UNWELL, Refused, RunningDaemon, eventually
from tests.support.workload import CountingProgram

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

QUEUED = 10_000


@pytest.fixture
def program(tmp_path: Path) -> Iterator[CountingProgram]:
    with CountingProgram(tmp_path, ballast_mib=1) as running:
        yield running


@pytest.fixture
def small_state(tmp_path: Path) -> Iterator[Path]:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "crd-test", state], check=True)
    yield state
    subprocess.run(["umount", "--lazy", state], check=True)


@pytest.fixture(params=["tmpfs", "ext4"])
def tiny_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The state directory, on a disk of its own."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    if request.param == "tmpfs":
        source = ["-t", "tmpfs", "-o", "size=24m", "crd-test"]
    else:
        source = ["-o", "loop", str(tmp_path / "disk")]
        with (tmp_path / "disk").open("wb") as disk:
            disk.truncate(32 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-b", "4096", tmp_path / "disk"], check=True)
    subprocess.run(["mount", *source, state], check=True)
    yield state
    subprocess.run(["umount", "--lazy", state], check=True)


def fill_up(disk: Path) -> None:
    """Leave no byte free, nor what is for root alone."""
    for name in ("filler", "filler-too"):  # as the first was written to, room for its map was kept
        fd = os.open(disk / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for n_bytes in (1 << 20, 4096):
            with suppress(OSError):
                while os.write(fd, bytes(n_bytes)):
                    os.fsync(fd)
        os.close(fd)


def every_second(home: Path) -> str:
    return f'[targets.counter]\npidfile = "{home}/program.pid"\nevery = "1s"\nkeep = "last=3"\n'


def test_a_disk_that_is_full_and_has_room_again(tmp_path: Path, small_state: Path, program: CountingProgram) -> None:
    failed = 'crd_checkpoints_total{engine="userspace",result="failed",target="counter"}'
    with RunningDaemon(tmp_path, every_second(tmp_path)) as daemon:
        eventually("an image", lambda: daemon.crctl("images"))
        before = {image["crid"] for image in daemon.crctl("images")}
        counted = daemon.metrics()[failed]

        def fails_while_it_is_full() -> bool:
            fill_up(small_state)  # again: what a checkpoint under way had taken is free when it has failed
            return daemon.metrics()[failed] >= counted + 2

        eventually("checkpoints to fail", fails_while_it_is_full)
        program.assert_unharmed()
        assert {"disk.full", "archive.full"} & {*wrong(daemon)}, "it answers all the same, and says so"
        for filler in small_state.glob("filler*"):
            filler.unlink()
        eventually("images again", lambda: {image["crid"] for image in daemon.crctl("images")} - before)
        assert daemon.crctl("scrub")["damaged"] == []
        eventually("all to be well", lambda: daemon.run_crctl("status").returncode == 0)
        program.kill()
        daemon.crctl("restart", "counter@latest", "--wait")
        program.assert_unharmed()


def test_forgetting_is_the_way_out_of_a_disk_without_a_byte_left(tmp_path: Path, tiny_disk: Path,
                                                                  program: CountingProgram) -> None:
    with RunningDaemon(tmp_path) as daemon:
        crids = [daemon.crctl("checkpoint", "--pid", str(program.pid))["crid"] for _ in range(5)]
        daemon.crctl("pin", str(crids[0]))
        fill_up(tiny_disk)
        with pytest.raises(Refused) as full:
            daemon.crctl("checkpoint", "--pid", str(program.pid))
        assert full.value.error["error"] in {"catalog.full", "archive.full"}
        assert "forget" in full.value.error["hint"]
        daemon.crctl("pin", str(crids[0]), "--remove")
        for crid, number in zip(crids, (None, None, signal.SIGTERM, signal.SIGKILL), strict=False):
            fill_up(tiny_disk)
            if number:
                daemon.stop(number)
                fill_up(tiny_disk)
                daemon.start()
            assert wrong(daemon)["disk.reserve-used"]["level"] == "warning"
            assert [verdict["error"] for verdict in daemon.crctl("forget", str(crid))] == [None]
        assert [image["crid"] for image in daemon.crctl("images")] == crids[-1:]
        for filler in tiny_disk.glob("filler*"):
            filler.unlink()
        newest = daemon.crctl("checkpoint", "--pid", str(program.pid))["crid"]
        daemon.crctl("forget", str(crids[-1]))
        assert daemon.run_crctl("status").returncode == 0, "room is kept back again"
        assert daemon.crctl("verify", str(newest))["image"]["state"] == "ok"
        program.assert_unharmed()


def wrong(daemon: RunningDaemon) -> dict[str, dict[str, str]]:
    """The problems that the daemon sees, by their codes."""
    return {problem["code"]: problem for problem in daemon.crctl("status")["problems"]}


def test_status_says_what_is_wrong_until_it_is_right(tmp_path: Path, program: CountingProgram) -> None:
    config = f'[targets.gone]\npidfile = "{tmp_path}/none"\nevery = "1s"\n'
    with RunningDaemon(tmp_path, config) as daemon:
        failing = eventually("the target to fail", lambda: wrong(daemon).get("target.not-found"))
        assert (failing["object"], failing["level"]) == ("target gone", "error")
        image = str(daemon.crctl("checkpoint", "--pid", str(program.pid))["crid"])
        pack = max((daemon.state / "archive").iterdir(), key=lambda path: path.stat().st_size)
        content = bytearray(pack.read_bytes())
        content[len(content) // 2] ^= 1
        pack.write_bytes(content)
        with pytest.raises(Refused):
            daemon.crctl("verify", image)
        told = daemon.run_crctl("status")
        assert told.returncode == UNWELL
        assert f"error: images: damaged: {image} (catalog.image-damaged)" in told.stdout
        assert wrong(daemon)["target.not-found"]["since"] == failing["since"]
        daemon.crctl("forget", image)
        daemon.crctl("target", "hold", "gone")
        assert not {"target.not-found", "catalog.image-damaged"} & {*wrong(daemon)}
        assert daemon.run_crctl("status").returncode == 0


@pytest.mark.timeout(600)
def test_a_catalog_that_somebody_locks(tmp_path: Path, program: CountingProgram) -> None:
    with RunningDaemon(tmp_path, every_second(tmp_path)) as daemon:
        eventually("an image", lambda: daemon.crctl("images"))
        with daemon.without_workers():
            waiting = daemon.crctl("restart", "counter@latest", "--pidns")["number"]  # claimed; waits for a worker
            eventually("it to be claimed", lambda: daemon.crctl("request", "show", str(waiting))["state"] == "running")
            catalog = sqlite3.connect(daemon.state / "catalog.db", isolation_level=None)
            with closing(catalog):
                catalog.execute("BEGIN IMMEDIATE")
                with pytest.raises(Refused) as refused:
                    daemon.crctl("restart", "counter@latest")
                assert refused.value.error["error"] == "catalog.busy"
                assert refused.value.status == 14
                assert daemon.crctl("images"), "reading goes on"
                catalog.execute("ROLLBACK")
        ended = eventually("the queue to go on", lambda: request if (
            request := daemon.crctl("request", "show", str(waiting)))["state"] in {"done", "failed"} else None)
        assert ended["state"] == "done", ended
        newest = daemon.crctl("images")[0]["crid"]
        eventually("images again", lambda: daemon.crctl("images")[0]["crid"] > newest)
        subprocess.run(["kill", "-9", str(ended["root_pid"])], check=True)
        program.assert_unharmed()


def test_a_worker_that_has_no_memory_left(tmp_path: Path, program: CountingProgram) -> None:
    with RunningDaemon(tmp_path) as daemon:
        image = daemon.crctl("checkpoint", "--pid", str(program.pid))
        nursery = daemon.nursery()
        unlimited = resource.prlimit(nursery, resource.RLIMIT_AS)
        with open(f"/proc/{nursery}/statm") as file:
            in_use = int(file.read().split()[0]) * resource.getpagesize()
        for spare in (0, 1 << 16, 1 << 18, 1 << 20, 3 << 20):
            resource.prlimit(nursery, resource.RLIMIT_AS, (in_use + spare, unlimited[1]))
            for words in (("checkpoint", "--pid", str(program.pid)), ("restart", str(image["crid"]), "--pidns",
                                                                     "--wait")):
                with suppress(Refused):
                    done = daemon.crctl(*words)
                    if words[0] == "restart":
                        subprocess.run(["kill", "-9", str(done["root_pid"])], check=True)
                program.assert_unharmed()
        resource.prlimit(nursery, resource.RLIMIT_AS, unlimited)
        assert daemon.crctl("checkpoint", "--pid", str(program.pid))["crid"] > image["crid"]
        assert daemon.crctl("scrub")["damaged"] == []


@pytest.mark.timeout(900)
def test_ten_thousand_requests_are_queued_and_none_is_lost(tmp_path: Path, program: CountingProgram) -> None:
    with RunningDaemon(tmp_path) as daemon:
        crid = str(daemon.crctl("checkpoint", "--pid", str(program.pid))["crid"])
        with daemon.without_workers():
            with Client(daemon.socket) as client:
                numbers = [client.call("Restart", reference=crid)["request"]["number"] for _ in range(QUEUED)]
                status = client.call("GetStatus")["queue"]
            assert len({*numbers}) == QUEUED
            assert status["queued"] + status["running"] == QUEUED
            eventually("the gauge to tell", lambda: daemon.metrics()["crd_restart_queue_length"] == QUEUED)
            assert daemon.process is not None
            assert resident_mib(daemon.process.pid) < 300
            daemon.process.send_signal(signal.SIGKILL)
            daemon.process.wait()
        daemon.stop(signal.SIGKILL)
        daemon.start()
        with Client(daemon.socket) as client:
            assert client.call("GetRequest", number=numbers[0])["request"]["state"] == "failed", "it was interrupted"
            last = client.call("GetRequest", number=numbers[-1])["request"]
            assert last["state"] == "queued"
            assert client.call("CancelRequest", number=numbers[-1])["request"]["state"] == "cancelled"
        eventually("the queue to go on", lambda: daemon.metrics()['crd_restart_requests_total{result="failed"}'] >= 5)
        with Client(daemon.socket) as client:
            begun = [client.call("GetRequest", number=number)["request"]["started_at"] for number in numbers[:5]]
        assert begun == sorted(begun), "first come, first served"
        program.assert_unharmed()


def resident_mib(pid: int) -> float:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / (1 << 20)
