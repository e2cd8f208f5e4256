"""Encryption as its users meet it: images that only the key opens."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.daemon import BIN, PATIENCE_SECONDS, Refused, RunningDaemon
from tests.support.workload import CountingProgram

pytestmark = pytest.mark.root


def new_key(path: Path) -> str:
    done = subprocess.run([BIN / "crd", "key", "--new", path, "--json"], capture_output=True, check=True)
    return json.loads(done.stdout)["key_id"]


def config(*keys: Path, accept_plain: bool = False) -> str:
    names = ", ".join(f'"{key}"' for key in keys)
    return f"[encryption]\nkeys = [{names}]\naccept_plain = {str(accept_plain).lower()}\n"


def refused(daemon: RunningDaemon) -> tuple[int, str]:
    """Start a daemon that must not start; return its exit status and what it says."""
    done = subprocess.run([BIN / "crd", "run", "--config", daemon.config], env=daemon.environment, capture_output=True,
                          text=True, timeout=PATIENCE_SECONDS)
    return done.returncode, done.stderr


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_an_image_is_sealed_and_restarts_and_the_key_is_rotated(tmp_path: Path) -> None:
    old, new = tmp_path / "old.key", tmp_path / "new.key"
    old_id, new_id = new_key(old), new_key(new)
    with CountingProgram(tmp_path) as program:
        with RunningDaemon(tmp_path, config(old)) as daemon:
            image = daemon.crctl("checkpoint", "--pid", str(program.pid), "--kill")
            program.process.wait(timeout=60)
            assert all(name.endswith(".sealed") for name in contents(daemon.state / "archive"))
            daemon.stop()
        before = contents(daemon.state)
        for wrong, says in ((config(new), f"{old_id}.*{new_id}"), (config(), f"{old_id}.*encryption.keys is empty")):
            daemon.config.write_text(wrong)
            status, told = refused(daemon)
            assert status == 11
            assert re.search(says, told)
        assert contents(daemon.state) == before
        daemon.config.write_text(config(new, old))
        with daemon:
            lines = len(program.counts())
            assert daemon.crctl("restart", str(image["crid"]), "--wait")["state"] == "done"
            program.assert_unharmed()
            program.assert_counted_without_gap_since(lines)
            second = daemon.crctl("checkpoint", "--pid", str(program.pid))
            daemon.crctl("verify", str(second["crid"]))
            assert f"keycheck-{new_id}.sealed" in contents(daemon.state / "archive")
            assert old.read_text().strip() not in daemon.log
            daemon.stop()
        daemon.config.write_text(config(new))
        with daemon:
            daemon.crctl("verify", str(second["crid"]))
            with pytest.raises(Refused) as lost:
                daemon.crctl("verify", str(image["crid"]))
            assert lost.value.error["error"] == "archive.key-missing"
            assert lost.value.error["key_id"] == old_id


def test_images_from_before_there_was_a_key(tmp_path: Path) -> None:
    new_key(tmp_path / "key")
    with CountingProgram(tmp_path) as program, RunningDaemon(tmp_path) as daemon:
        image = str(daemon.crctl("checkpoint", "--pid", str(program.pid))["crid"])
        daemon.stop()
        daemon.config.write_text(config(tmp_path / "key"))
        daemon.start()
        with pytest.raises(Refused) as plain:
            daemon.crctl("verify", image)
        assert plain.value.error["error"] == "archive.not-encrypted"
        daemon.stop()
        daemon.config.write_text(config(tmp_path / "key", accept_plain=True))
        daemon.start()
        daemon.crctl("verify", image)
        assert daemon.crctl("show", image)["state"] != "damaged"


def test_a_key_that_others_can_read_stops_the_start(tmp_path: Path) -> None:
    new_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    status, told = refused(RunningDaemon(tmp_path, config(tmp_path / "key")))
    assert status == 2
    assert "chmod 0600" in told
