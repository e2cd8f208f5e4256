"""The archive on S3 as its users meet it: a real server, daemons that share its bucket, and bad days of both."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import TYPE_CHECKING

import obstore
import pytest

from tests.support.daemon import BIN, PATIENCE_SECONDS, Refused, RunningDaemon, eventually
from tests.support.seaweed import SECRET_KEY, SeaweedServer
from tests.support.workload import CountingProgram

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

BUCKET = "images"


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[SeaweedServer]:
    """A server of this test alone, which may be away for long."""
    with SeaweedServer(tmp_path / "seaweed") as server:
        yield server


def config(server: SeaweedServer, prefix: str, writer: str = "host", more: str = "") -> str:
    location = server.location(BUCKET, prefix)
    return (f'[archive]\nstore = "s3"\n[s3]\nbucket = "{BUCKET}"\nprefix = "{prefix}"\n'
            f'endpoint = "{location.endpoint}"\nregion = "us-east-1"\n'
            f'credentials = "{location.credentials}"\nwriter = "{writer}"\n{more}')


def waiting(daemon: RunningDaemon) -> int:
    return daemon.crctl("status")["archive"]["spool"]["objects"]


def stored(server: SeaweedServer, prefix: str) -> list[str]:
    return [meta["path"] for chunk in obstore.list(server.bucket(BUCKET), prefix) for meta in chunk
            if not meta["path"].endswith(("/lease", ".token"))]


def refused(daemon: RunningDaemon) -> tuple[int, str]:
    """Start a daemon that must not start; return its exit status and what it says."""
    done = subprocess.run([BIN / "crd", "run", "--config", daemon.config], env=daemon.environment, capture_output=True,
                          text=True, timeout=PATIENCE_SECONDS)
    return done.returncode, done.stderr


def test_checkpoint_kill_and_restart(tmp_path: Path, seaweed: SeaweedServer) -> None:
    prefix = tmp_path.name
    with CountingProgram(tmp_path) as program, RunningDaemon(tmp_path, config(seaweed, prefix)) as daemon:
        first = daemon.crctl("checkpoint", "--pid", str(program.pid))
        second = daemon.crctl("checkpoint", "--pid", str(program.pid), "--kill")
        program.process.wait(timeout=PATIENCE_SECONDS)
        assert second["stored_bytes"] < first["stored_bytes"] / 2
        eventually("the spool to be empty", lambda: not waiting(daemon))
        assert list((daemon.state / "spool" / "objects").iterdir()) == []
        assert not (daemon.state / "archive").exists()
        series = {name.partition("{")[0] for name in daemon.metrics()}
        assert {"crd_archive_spool_bytes", "crd_archive_spool_objects", "crd_archive_away"} <= series
        daemon.stop(signal.SIGKILL)
        daemon.start()
        lines = len(program.counts())
        assert daemon.crctl("restart", str(first["crid"]), "--wait")["state"] == "done"
        program.assert_unharmed()
        program.assert_counted_without_gap_since(lines)
        daemon.crctl("forget", str(first["crid"]))
        daemon.crctl("verify", str(second["crid"]), "--restart")
        daemon.crctl("forget", str(second["crid"]))
        assert stored(seaweed, prefix) == []
        assert SECRET_KEY not in daemon.log


def test_while_the_server_is_away(tmp_path: Path, own_server: SeaweedServer) -> None:
    with (CountingProgram(tmp_path, ballast_mib=1) as program,
          RunningDaemon(tmp_path, config(own_server, "p", more='spool_size = "12MiB"\n')) as daemon):
        first = daemon.crctl("checkpoint", "--pid", str(program.pid))
        eventually("the spool to be empty", lambda: not waiting(daemon))
        own_server.kill()
        second = daemon.crctl("checkpoint", "--pid", str(program.pid))
        daemon.crctl("verify", str(second["crid"]), "--restart")
        status = daemon.crctl("status")["archive"]
        assert status["images"] == 2
        assert status["spool"]["objects"] == 2
        eventually("the reason to show", lambda: daemon.crctl("status")["archive"]["spool"]["error"])
        with pytest.raises(Refused) as away:
            daemon.crctl("verify", str(first["crid"]))
        assert away.value.error["error"] == "archive.unavailable"
        assert daemon.crctl("show", str(first["crid"]))["state"] != "damaged"
        (tmp_path / "large").mkdir()
        with CountingProgram(tmp_path / "large", ballast_mib=30, noisy=True) as large, pytest.raises(Refused) as full:
            daemon.crctl("checkpoint", "--pid", str(large.pid))
        assert full.value.error["error"] == "archive.full"
        assert "spool" in full.value.error["hint"]
        third = daemon.crctl("checkpoint", "--pid", str(program.pid), "--kill")
        program.process.wait(timeout=PATIENCE_SECONDS)
        daemon.stop(signal.SIGKILL)
        daemon.config.write_text(daemon.config.read_text().replace('"host"', '"another"'))
        status, told = refused(daemon)
        assert status == 1, "as another it has never begun, and the settings may be wrong"
        assert "s3.endpoint" in told
        daemon.config.write_text(daemon.config.read_text().replace('"another"', '"host"'))
        own_server.start()
        daemon.config.write_text(daemon.config.read_text().replace('"host"', '"another"'))
        status, told = refused(daemon)
        assert status == 14
        assert "4 objects that belong into s3://images/p/host" in told
        daemon.config.write_text(daemon.config.read_text().replace('"another"', '"host"'))
        with daemon:
            assert {image["crid"] for image in daemon.crctl("images")} == {
                first["crid"], second["crid"], third["crid"]}
            eventually("the spool to be empty", lambda: not waiting(daemon))
            for image in (first, second, third):
                daemon.crctl("verify", str(image["crid"]))
            lines = len(program.counts())
            daemon.crctl("restart", str(third["crid"]), "--wait")
            program.assert_unharmed()
            program.assert_counted_without_gap_since(lines)


def test_a_start_while_the_server_is_away(tmp_path: Path, own_server: SeaweedServer) -> None:
    with (CountingProgram(tmp_path) as program,
          RunningDaemon(tmp_path, config(own_server, "p")) as daemon):
        first = daemon.crctl("checkpoint", "--pid", str(program.pid))["crid"]
        eventually("the spool to be empty", lambda: not waiting(daemon))
        daemon.stop(signal.SIGKILL)
        own_server.kill()
        daemon.start()
        assert daemon.crctl("status")["archive"]["spool"]["error"]
        assert daemon.metrics()['crd_archive_away{store="s3://images/p/host/objects"}'] == 1
        second = daemon.crctl("checkpoint", "--pid", str(program.pid))["crid"]
        third = daemon.crctl("checkpoint", "--pid", str(program.pid))["crid"]
        assert {image["crid"] for image in daemon.crctl("images")} == {first, second, third}
        assert daemon.run_crctl("forget", str(first), str(second)).returncode, "it cannot know yet what others need"
        daemon.crctl("verify", str(third))
        own_server.start()
        eventually("the spool to be empty", lambda: not waiting(daemon))
        assert daemon.crctl("status")["archive"]["spool"]["error"] is None
        assert {image["crid"]: image["state"] for image in daemon.crctl("images")} == {third: "ok"}
        daemon.crctl("verify", str(third))
        eventually("what was forgotten to be gone", lambda: sum(
            path.endswith(".image") for path in stored(own_server, "p")) == 1)
        daemon.stop()
        daemon.start()
        daemon.crctl("verify", str(third))
        daemon.crctl("forget", str(third))
        assert stored(own_server, "p") == []


def test_another_took_the_name_while_the_server_was_away(tmp_path: Path, own_server: SeaweedServer) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with RunningDaemon(tmp_path / "one", config(own_server, "p")) as one:
        one.stop()
        own_server.kill()
        process = one.start().process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        own_server.start()
        with RunningDaemon(tmp_path / "two", config(own_server, "p")) as two:
            process.send_signal(signal.SIGCONT)
            assert process.wait(timeout=PATIENCE_SECONDS) == 14
            assert "in use by" in one.log
            assert two.crctl("status")["archive"]["spool"]["error"] is None


def test_two_daemons_share_a_bucket_but_not_a_name(tmp_path: Path, seaweed: SeaweedServer) -> None:
    prefix = tmp_path.name
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with (CountingProgram(tmp_path / "one") as program,
          RunningDaemon(tmp_path / "one", config(seaweed, prefix, "one")) as one,
          RunningDaemon(tmp_path / "two", config(seaweed, prefix, "two")) as two):
        images = [daemon.crctl("checkpoint", "--pid", str(program.pid)) for daemon in (one, two, one)]
        assert images[0]["crid"] == images[1]["crid"], "each host counts for itself"
        for daemon in (one, two):
            eventually("the spool to be empty", lambda daemon=daemon: not waiting(daemon))
        one.crctl("forget", str(images[0]["crid"]))
        two.crctl("verify", str(images[1]["crid"]))
        two.stop()
        two.config.write_text(config(seaweed, prefix, "one"))
        status, told = refused(two)
        assert status == 14
        assert "s3.writer" in told
        one.crctl("verify", str(images[2]["crid"]))
        assert one.crctl("checkpoint", "--pid", str(program.pid))["crid"]


def test_a_daemon_whose_name_was_taken_ends(tmp_path: Path, seaweed: SeaweedServer) -> None:
    prefix = tmp_path.name
    with CountingProgram(tmp_path) as program, RunningDaemon(tmp_path, config(seaweed, prefix)) as daemon:
        daemon.crctl("checkpoint", "--pid", str(program.pid))
        lease = json.loads(bytes(obstore.get(seaweed.bucket(BUCKET), f"{prefix}/host/lease").bytes()))
        obstore.put(seaweed.bucket(BUCKET), f"{prefix}/host/lease",
                    json.dumps({**lease, "holder": "another", "beat": "its own"}).encode())
        assert daemon.process
        assert daemon.process.wait(timeout=PATIENCE_SECONDS) == 14
        assert "took over" in daemon.log
        program.assert_unharmed()


def test_what_is_encrypted_reaches_no_server_in_clear(tmp_path: Path, seaweed: SeaweedServer) -> None:
    prefix = tmp_path.name
    subprocess.run([BIN / "crd", "key", "--new", tmp_path / "key"], capture_output=True, check=True)
    sealed = config(seaweed, prefix, more=f'[encryption]\nkeys = ["{tmp_path / "key"}"]\n')
    with CountingProgram(tmp_path) as program, RunningDaemon(tmp_path, sealed) as daemon:
        image = daemon.crctl("checkpoint", "--pid", str(program.pid), "--kill")
        program.process.wait(timeout=PATIENCE_SECONDS)
        eventually("the spool to be empty", lambda: not waiting(daemon))
        assert all(".sealed" in name for name in stored(seaweed, prefix))
        assert len(stored(seaweed, prefix)) >= 3
        daemon.stop(signal.SIGKILL)
        daemon.start()
        daemon.crctl("restart", str(image["crid"]), "--wait")
        program.assert_unharmed()


def test_without_a_spool_a_checkpoint_is_done_when_the_server_has_it(tmp_path: Path, seaweed: SeaweedServer) -> None:
    prefix = tmp_path.name
    with (CountingProgram(tmp_path, ballast_mib=30, noisy=True) as program,
          RunningDaemon(tmp_path, config(seaweed, prefix, more="spool_size = 0\n")) as daemon):
        image = daemon.crctl("checkpoint", "--pid", str(program.pid))
        assert len(stored(seaweed, prefix)) >= 4, "a pack, its parts, and an image"
        assert not (daemon.state / "spool").exists()
        daemon.crctl("verify", str(image["crid"]))
        assert daemon.crctl("status")["archive"]["spool"] is None


@pytest.mark.parametrize(("change", "status", "says"), [
    (("endpoint = ", 'endpoint = "http://127.0.0.1:1" #'), 1, "refused"),
    (('bucket = "images"', 'bucket = "missing"'), 12, "NoSuchBucket"),
    (("credentials = ", 'credentials = "/nowhere" #'), 2, "/nowhere"),
    (("credentials = ", 'credentials = "named" #'), 2, "LoadCredential=named"),
    (('bucket = "images"', 'bucket = ""'), 2, "s3.bucket"),
])
def test_a_daemon_that_cannot_reach_its_archive_says_why(tmp_path: Path, seaweed: SeaweedServer,
                                                         change: tuple[str, str], status: int, says: str) -> None:
    daemon = RunningDaemon(tmp_path, config(seaweed, tmp_path.name.lower()[:10]).replace(*change))
    found, told = refused(daemon)
    assert (found, says in told) == (status, True), told
    assert not (daemon.state / "catalog.db").exists()
