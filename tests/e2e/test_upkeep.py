"""Images over time as their users meet it: rules, pins, damage, and who may do what."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from crd.api.client import Client
from tests.support.daemon import BIN, Refused, RunningDaemon, eventually
from tests.support.users import NOBODY, as_nobody, opened_to_others
from tests.support.victims import python_script, until
from tests.support.workload import CountingProgram

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

CONFIG = '[targets.counter]\npidfile = "{home}/program.pid"\nevery = "1d"\nkeep = "{keep}"\n[api]\npublic = true\n'


@pytest.fixture
def program(tmp_path: Path) -> Iterator[CountingProgram]:
    with CountingProgram(tmp_path) as running:
        yield running


@pytest.fixture
def daemon(tmp_path: Path, program: CountingProgram) -> Iterator[RunningDaemon]:
    """With a target that keeps two images."""
    with RunningDaemon(tmp_path, CONFIG.format(home=tmp_path, keep="last=2")) as running:
        yield running


def taken(daemon: RunningDaemon) -> int:
    crid: int = daemon.crctl("checkpoint", "counter")["crid"]
    return crid


def crids(daemon: RunningDaemon) -> list[int]:
    return [image["crid"] for image in daemon.crctl("images")]


def objects(daemon: RunningDaemon) -> set[int]:
    return {int(path.name[:16], 16) for path in (daemon.state / "archive").rglob("*.image")}


def packs(daemon: RunningDaemon) -> list[Path]:
    return sorted((daemon.state / "archive").rglob("*.pack"), key=lambda path: path.stat().st_mtime_ns)


def spoil(daemon: RunningDaemon, crid: int) -> None:
    [stored] = (daemon.state / "archive").rglob(f"{crid:016x}.image")
    spoil_file(stored)


def spoil_file(stored: Path) -> None:
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 0x10
    stored.write_bytes(content)


def test_the_rules_are_applied_after_each_checkpoint(daemon: RunningDaemon, program: CountingProgram) -> None:
    first = taken(daemon)
    assert daemon.crctl("pin", str(first))["pinned"] is True
    later = [taken(daemon) for _ in range(4)]
    kept = {first, *later[-2:]}
    eventually("the rules to be applied", lambda: set(crids(daemon)) == kept == objects(daemon))
    shown = daemon.crctl("show", str(first))
    assert shown["retention"]["reasons"] == ["pinned"]
    assert shown["sharing"]["shared_pages"] > 10 * shown["sharing"]["own_pages"]
    assert daemon.crctl("show", str(later[-1]))["retention"]["reasons"] == ["last 1 of 2"]
    with pytest.raises(Refused) as refused:
        daemon.crctl("forget", str(later[-1]), str(first))
    assert (refused.value.status, refused.value.error["error"]) == (14, "catalog.image-in-use")
    assert set(crids(daemon)) == kept, "nothing is forgotten if one of them cannot be"
    daemon.crctl("pin", "--remove", str(first))
    dry = {verdict["crid"]: verdict["keep"] for verdict in daemon.crctl("forget", "--dry-run")}
    assert dry == {first: False, later[-2]: True, later[-1]: True}
    assert set(crids(daemon)) == kept
    daemon.crctl("forget", "--target", "counter")
    assert objects(daemon) == set(crids(daemon)) == set(later[-2:])
    daemon.crctl("forget", "counter@latest")
    program.kill()
    assert daemon.crctl("restart", "counter@latest", "--wait")["crid"] == later[-2]
    program.assert_unharmed()


def test_an_image_to_be_restarted_is_not_forgotten(daemon: RunningDaemon, program: CountingProgram) -> None:
    crid = taken(daemon)
    assert daemon.process is not None
    done = daemon.crctl("restart", str(crid), "--pidns", "--wait")
    os.kill(done["root_pid"], signal.SIGKILL)
    daemon.crctl("forget", str(crid))
    with pytest.raises(Refused) as refused:
        daemon.crctl("restart", str(crid))
    assert refused.value.status == 11
    assert daemon.crctl("request", "show", str(done["number"]))["crid"] == crid, "what was done stays known"
    program.assert_unharmed()


def test_damage_is_found_shown_and_refused(daemon: RunningDaemon, program: CountingProgram) -> None:
    good, bad = taken(daemon), taken(daemon)
    scrubbed = daemon.crctl("scrub")
    assert (scrubbed["images"], scrubbed["checked"], scrubbed["damaged"]) == (2, 2, [])
    assert scrubbed["bytes"] > sum(path.stat().st_size for path in packs(daemon)), "what they share was read twice"
    spoil(daemon, bad)
    scrub = daemon.run_crctl("scrub", "--json")
    assert (scrub.returncode, json.loads(scrub.stdout)["damaged"]) == (1, [bad])
    states = {image["crid"]: (image["state"], bool(image["damage"])) for image in daemon.crctl("images")}
    assert states == {good: ("ok", False), bad: ("damaged", True)}
    assert daemon.metrics()["crd_scrub_errors_total"] == 1
    assert daemon.metrics()["crd_last_scrub_timestamp_seconds"] > 1.7e9
    for words, code in ((("restart", str(bad)), "catalog.image-damaged"), (("verify", str(bad)),
                                                                          "archive.blob-corrupt")):
        with pytest.raises(Refused) as refused:
            daemon.crctl(*words)
        assert refused.value.error["error"] == code
    spoil(daemon, bad)
    assert daemon.crctl("verify", str(bad))["image"]["state"] == "ok", "put right again"
    program.assert_unharmed()


def test_damage_of_what_images_share_hurts_those_and_no_others(daemon: RunningDaemon, program: CountingProgram) -> None:
    first, second = taken(daemon), taken(daemon)
    shared = packs(daemon)[0]
    spoil_file(shared)
    with pytest.raises(Refused) as refused:
        daemon.crctl("verify", str(first))
    assert shared.name in refused.value.error["message"]
    assert refused.value.error["images"] == [second]
    assert f"It hurts images {second}, too." in refused.value.error["hint"]
    assert {image["state"] for image in daemon.crctl("images")} == {"damaged"}
    scrub = daemon.run_crctl("scrub", "--json")
    assert (scrub.returncode, sorted(json.loads(scrub.stdout)["damaged"])) == (1, [first, second])
    assert shared.name in daemon.crctl("show", str(second))["damage"]
    third = taken(daemon)
    assert daemon.crctl("verify", str(third))["image"]["state"] == "ok", "it stored anew what was damaged"
    daemon.crctl("forget", str(first), str(second))
    assert len(packs(daemon)) == 1
    program.kill()
    daemon.crctl("restart", str(third), "--wait")
    program.assert_unharmed()


def test_a_rehearsal_harms_neither_the_original_nor_its_files(daemon: RunningDaemon, program: CountingProgram) -> None:
    crid = taken(daemon)
    rehearsed = daemon.crctl("verify", str(crid), "--restart")
    assert rehearsed["rehearsal"]["threads"] == 1
    assert (rehearsed["rehearsal"]["ran"], rehearsed["rehearsal"]["hindrance"]) == (True, "")
    assert [(seen["pid"], seen["what"]) for seen in rehearsed["rehearsal"]["seen"]] == [(program.pid, "ran")]
    assert 0 < rehearsed["rehearsal"]["seconds"] < 60
    program.assert_unharmed()
    program.kill()
    counts = program.counts()
    assert daemon.crctl("verify", str(crid), "--restart")["image"]["verified_at"]
    assert program.counts() == counts, "what ran wrote elsewhere"
    program.assert_counted_without_gap_since(0)
    program.log.rename(program.home / "elsewhere")
    with pytest.raises(Refused) as refused:
        daemon.crctl("verify", str(crid), "--restart")
    assert refused.value.error["error"] == "restart.resource-changed"


def test_others_have_no_hand_in_it(daemon: RunningDaemon, tmp_path: Path) -> None:
    opened_to_others(tmp_path)
    crid = str(taken(daemon))
    for method, parameters, code in (
            ("Forget", {"references": [crid]}, "catalog.image-not-found"), ("Forget", {}, "api.access-denied"),
            ("Forget", {"target": "counter", "dry_run": True}, "api.access-denied"),
            ("Pin", {"reference": crid, "pinned": True}, "catalog.image-not-found"),
            ("Verify", {"reference": crid}, "catalog.image-not-found"), ("Scrub", {}, "api.access-denied"),
            ("Export", {"reference": crid}, "api.access-denied"), ("Import", {}, "api.access-denied")):
        assert as_nobody(daemon, method, **parameters) == code, method
    assert crids(daemon) == [int(crid)]


def test_a_kill_while_forgetting_leaves_catalog_and_archive_at_one(daemon: RunningDaemon) -> None:
    chance = random.Random(5)
    for _ in range(5):
        crid = taken(daemon)
        running = subprocess.Popen([sys.executable, BIN / "crctl", "forget", str(crid)], env=daemon.environment,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with suppress(subprocess.TimeoutExpired):
            running.wait(timeout=chance.uniform(0.1, 0.3))
        daemon.stop(signal.SIGKILL)
        acknowledged = running.wait(timeout=60) == 0
        daemon.start()
        eventually("the rules to be applied", lambda: objects(daemon) == set(crids(daemon)))
        assert not (acknowledged and crid in crids(daemon))


def test_rules_of_an_added_target_and_rules_that_cannot_be_read(daemon: RunningDaemon,
                                                                 program: CountingProgram) -> None:
    added = daemon.crctl("target", "add", "mine", "--pid", str(program.pid), "--every", "1d", "--keep",
                         "daily=7,last=3 within=36h")
    assert added["keep"] == "last=3 within=36h daily=7"
    with pytest.raises(Refused) as refused:
        daemon.crctl("target", "add", "other", "--pid", str(program.pid), "--every", "1d", "--keep", "dayly=7")
    assert refused.value.status == 2
    assert "there is no rule" in refused.value.error["message"]


def test_export_and_import_give_the_exact_stream(daemon: RunningDaemon, program: CountingProgram,
                                                 tmp_path: Path) -> None:
    crid = taken(daemon)
    exported = daemon.crctl("export", str(crid), "-o", str(tmp_path / "one.image"))
    content = (tmp_path / "one.image").read_bytes()
    assert exported["crid"] == crid
    assert len(content) == exported["image_bytes"]
    inspected = subprocess.run([BIN / "crd", "inspect", tmp_path / "one.image"], check=False, capture_output=True)
    assert inspected.returncode == 0
    piped = subprocess.run([BIN / "crctl", "export", "counter@latest", "-o", "-"], env=daemon.environment, check=True,
                           capture_output=True)
    assert piped.stdout == content
    imported = daemon.crctl("import", str(tmp_path / "one.image"))
    assert imported["crid"] > crid
    assert imported["target"] is None
    again = daemon.crctl("export", str(imported["crid"]), "-o", str(tmp_path / "again.image"))
    assert again["digest"] == imported["digest"]
    assert (tmp_path / "again.image").read_bytes() == content
    for same in ("image_bytes", "pid", "comm", "uid", "threads", "tasks", "header"):
        assert imported[same] == exported[same], same
    assert 0 < imported["memory_bytes"] <= exported["memory_bytes"], "pages that are zero are not in the stream"
    assert abs(float(imported["taken_at"][17:19]) - float(exported["taken_at"][17:19])) % 59 <= 1
    program.kill()
    daemon.crctl("restart", str(imported["crid"]), "--wait")
    program.assert_unharmed()


def test_what_is_no_whole_image_is_not_imported(daemon: RunningDaemon, tmp_path: Path) -> None:
    crid = taken(daemon)
    daemon.crctl("export", str(crid), "-o", str(tmp_path / "one.image"))
    content = (tmp_path / "one.image").read_bytes()
    for spoilt, code in ((b"", "image.truncated"), (content[:-8], "image.truncated"),
                         (content[:len(content) // 2], "image.truncated"), (content + b"\0", "image.corrupt"),
                         (b"\x7fELF" + bytes(4 << 20), "image.version-unsupported"),
                         (content[:267] + bytes([255] * 4) + content[271:], "image.corrupt")):
        (tmp_path / "spoilt").write_bytes(spoilt)
        with pytest.raises(Refused) as refused:
            pytest.fail(f"taken for an image: {daemon.crctl('import', str(tmp_path / 'spoilt'))}")
        assert refused.value.error["error"] == code
    assert crids(daemon) == [crid]
    assert objects(daemon) == {crid}
    assert sorted(path.suffix for path in (daemon.state / "archive").iterdir()) == [".image", ".pack", ".token"]


def test_an_import_that_is_broken_off_leaves_nothing(daemon: RunningDaemon, tmp_path: Path) -> None:
    crid = taken(daemon)
    daemon.crctl("export", str(crid), "-o", str(tmp_path / "one.image"))
    content = (tmp_path / "one.image").read_bytes()
    with Client(daemon.socket) as client:
        _, connection = client.upgrade("Import")
        connection.sendall(content[:len(content) // 2])
    with Client(daemon.socket) as client:
        reply, connection = client.upgrade("Export", reference=str(crid))
        assert connection.recv(4096)
    assert reply["image"]["crid"] == crid
    eventually("the readers to be gone", lambda: daemon.run_crctl("forget", str(crid)).returncode == 0)
    assert crids(daemon) == []
    eventually("no object to be left", lambda: not objects(daemon))


def test_a_damaged_image_is_not_exported(daemon: RunningDaemon, tmp_path: Path) -> None:
    crid = taken(daemon)
    spoil(daemon, crid)
    with pytest.raises(Refused) as refused:
        daemon.crctl("export", str(crid), "-o", str(tmp_path / "one.image"))
    assert refused.value.error["error"] == "archive.blob-corrupt"
    assert not (tmp_path / "one.image").exists()


MIXED = """
import os, time
if os.fork():
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
open("ready" + str(os.getuid() == 0), "w").close() if os.getuid() == 0 else None
while True: time.sleep(0.1)
"""


def test_a_user_has_no_way_to_a_child_that_is_somebody_elses(daemon: RunningDaemon, tmp_path: Path) -> None:
    opened_to_others(tmp_path)
    home = tmp_path / "mixed"
    home.mkdir()
    with python_script(home, MIXED) as program:
        until("both", lambda: (home / "readyTrue").exists() and program.status()["Uid"].split()[0] == str(NOBODY))
        parameters = {"target": None, "pid": program.pid, "after": None, "tag": None, "wait": True}
        assert as_nobody(daemon, "Checkpoint", **parameters) == "api.access-denied"
        assert as_nobody(daemon, "Check", pid=program.pid) == "api.access-denied"
        crid = daemon.crctl("checkpoint", "--pid", str(program.pid))["crid"]
        assert daemon.crctl("show", str(crid))["tasks"] == 2
        assert as_nobody(daemon, "GetImage", reference=str(crid)) == "catalog.image-not-found"
