"""Files are rolled back with the tasks that write them: an older image finds the files that it knew."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.support.daemon import RunningDaemon, eventually
from tests.support.direct import checkpoint, crd, restart
from tests.support.victims import Victim, until

pytestmark = pytest.mark.root

SAVING = ("--save-files", "1MiB")


def write_on(victim: Victim) -> None:
    """Wait until the victim has written more."""
    log = victim.file("log")
    before = log.stat().st_size
    until("progress", lambda: log.stat().st_size > before + 20)


def test_left_running(tmp_path: Path) -> None:
    with Victim("contents", tmp_path) as victim:
        for number in range(3):
            write_on(victim)
            checkpoint(victim, tmp_path / f"{number}.image", *SAVING)
            victim.assert_unharmed()
        victim.verify()


def test_killed_and_the_older_image_restarted(tmp_path: Path) -> None:
    with Victim("contents", tmp_path) as victim:
        checkpoint(victim, tmp_path / "older.image", *SAVING)
        write_on(victim)
        checkpoint(victim, tmp_path / "newer.image", *SAVING)
        for image in ("newer.image", "older.image"):
            write_on(victim)
            victim.kill()
            done = restart(tmp_path / image, "--files", "rollback")
            assert done.returncode == 0, done.stderr
            for suffix in ("log", "data", "mapped"):
                assert f"contents.{suffix}" in done.stderr
            victim.restarted_as(victim.pid)
            victim.assert_unharmed()
            write_on(victim)
            time.sleep(1)  # the names of what is kept aside have a second in them
        victim.verify()
        kept = [*tmp_path.glob("contents.log.newer-*")]
        assert len(kept) == 2
        assert all(path.read_text().split() for path in kept)
        assert len([*tmp_path.glob("contents.data.newer-*")]) == len([*tmp_path.glob("contents.mapped.newer-*")]) == 2


def test_by_default_nothing_is_taken_from_a_file(tmp_path: Path) -> None:
    with Victim("contents", tmp_path) as victim:
        checkpoint(victim, tmp_path / "image", *SAVING)
        write_on(victim)
        victim.kill()
        before = victim.file("log").read_bytes()
        done = restart(tmp_path / "image")
        assert done.returncode == 0, done.stderr
        victim.restarted_as(victim.pid)
        write_on(victim)
        assert victim.file("log").read_bytes().startswith(before)
        assert not [*tmp_path.glob("*.newer-*")]


@pytest.mark.parametrize("files", ["fail", "rollback"])
def test_a_file_that_has_changed_is_refused_before_anything_is_made(files: str, tmp_path: Path) -> None:
    with Victim("contents", tmp_path) as victim:
        checkpoint(victim, tmp_path / "image")  # without the content
        write_on(victim)
        victim.kill()
        before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
        done = restart(tmp_path / "image", "--files", files)
        assert done.returncode == 14
        assert "has changed since the image was taken" in done.stderr
        assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
        assert not victim.is_there()


def test_the_daemon_saves_and_puts_back_what_the_settings_of_a_target_say(tmp_path: Path) -> None:
    with Victim("contents", tmp_path) as victim:
        config = f'[targets.victim]\npid = {victim.pid}\nevery = "1h"\nsave_files = "1MiB"\nfiles = "rollback"\n'
        (tmp_path / "daemon").mkdir()
        with RunningDaemon(tmp_path / "daemon", config) as daemon:
            [target] = daemon.crctl("targets")
            assert (target["save_files"], target["files"]) == (str(1 << 20), "rollback")
            image = daemon.crctl("checkpoint", "victim")
            write_on(victim)
            running = daemon.run_crctl("restart", str(image["crid"]), "--plan", "--json")
            assert running.returncode == 14
            assert "restart.pid-in-use" in {clash["error"] for clash in json.loads(running.stdout)["clashes"]}
            victim.kill()
            log = victim.file("log").read_bytes()
            plan = daemon.crctl("restart", str(image["crid"]), "--plan")
            assert plan["crid"] == image["crid"]
            assert not plan["clashes"]
            hows = {made["name"]: made["how"] for made in plan["makes"] if made["kind"] == "file"}
            assert "cut off to" in hows[str(victim.file("log"))]
            assert "its saved content put back" in hows[str(victim.file("data"))]
            assert victim.file("log").read_bytes() == log
            assert not daemon.crctl("requests")
            assert not victim.is_there()
            request = daemon.crctl("restart", str(image["crid"]), "--wait")
            assert (request["state"], request["files"]) == ("done", "rollback")
            eventually("it to run", victim.is_running)
            victim.verify()


def test_in_a_namespace_of_its_own(tmp_path: Path) -> None:
    with Victim("contents", tmp_path) as victim:
        checkpoint(victim, tmp_path / "image", *SAVING)
        inspected = crd("inspect", tmp_path / "image", home=tmp_path)
        assert inspected.returncode == 0, inspected.stderr
        write_on(victim)
        victim.kill()
        done = restart(tmp_path / "image", "--pidns", "--files", "rollback")
        assert done.returncode == 0, done.stderr
        victim.restarted_as(int(done.stdout))
        victim.verify()
