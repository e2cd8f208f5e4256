"""Who may do what: every method as another user, what belongs to whom, and what nobody else gets to see."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from crd.api import interface
from crd.api.protocol import INTERFACE
from tests.support.daemon import BIN, Refused, RunningDaemon, eventually
from tests.support.users import NOBODY, UsersProgram, call_as, run_as
from tests.support.workload import CountingProgram

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

METHODS = sorted(interface.load(INTERFACE).methods)
USER = 65533
OTHER = 65532
GROUP = 64001
PUBLIC = "[api]\npublic = true\n"
DENIED, NO_IMAGE = "api.access-denied", "catalog.image-not-found"


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A directory that others may enter; those of pytest are closed whenever another run of it begins."""
    path = Path(tempfile.mkdtemp(prefix="crd-access-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def roots(home: Path) -> Iterator[CountingProgram]:
    (home / "roots").mkdir()
    with CountingProgram(home / "roots") as program:
        yield program


@pytest.fixture(scope="module")
def daemon(home: Path, roots: CountingProgram) -> Iterator[RunningDaemon]:
    """A public one, with a target, an image and a request, all of root's."""
    with RunningDaemon(home, f'{PUBLIC}[targets.counter]\npid = {roots.pid}\nevery = "1d"\n') as running:
        running.crctl("checkpoint", "counter")
        running.crctl("restart", "1")
        eventually("the request to fail", lambda: running.crctl("request", "show", "1")["state"] == "failed")
        yield running


TARGET: dict[str, Any] = dict.fromkeys(("pidfile", "comm", "unit", "cgroup", "on_calendar", "cron", "jitter", "keep",
                                        "save_files", "files", "at_shutdown", "at_boot", "source", "last", "next_at"))
STRANGER: dict[str, tuple[dict[str, Any], str | dict[str, Any]]] = {
    "Adopt": ({}, DENIED),
    "Attach": ({"pid": "roots", "connection": 0}, DENIED),
    "AddTarget": ({"target": {**TARGET, "name": "mine", "pid": 1, "every": "1d", "held": False}}, DENIED),
    "CancelRequest": ({"number": 1}, "catalog.request-not-found"),
    "Check": ({"pid": "roots"}, DENIED),
    "Checkpoint": ({"pid": "roots"}, DENIED),
    "Diff": ({"references": ["1", "1"]}, NO_IMAGE),
    "Export": ({"reference": "1"}, DENIED),
    "Forget": ({"references": ["1"]}, NO_IMAGE),
    "GetImage": ({"reference": "1"}, NO_IMAGE),
    "GetRequest": ({"number": 1}, "catalog.request-not-found"),
    "GetStatus": ({}, {}),
    "HoldTarget": ({"name": "counter"}, DENIED),
    "Import": ({}, DENIED),
    "ListImages": ({}, {"images": []}),
    "ListRequests": ({}, {"requests": []}),
    "ListTargets": ({}, {"targets": []}),
    "Pin": ({"reference": "1", "pinned": True}, NO_IMAGE),
    "Note": ({"reference": "1", "text": "mine"}, NO_IMAGE),
    "PlanRestart": ({"reference": "1"}, NO_IMAGE),
    "Reload": ({}, DENIED),
    "RemoveTarget": ({"name": "counter"}, DENIED),
    "Restart": ({"reference": "1"}, NO_IMAGE),
    "ResumeTarget": ({"name": "counter"}, DENIED),
    "SaveForShutdown": ({"unit": "counter.service"}, DENIED),
    "Scrub": ({}, DENIED),
    "Serve": ({"listener": 0}, "api.bad-request"),
    "Sweep": ({}, DENIED),
    "Tag": ({"reference": "1", "add": ["mine"]}, NO_IMAGE),
    "Verify": ({"reference": "1", "restart": True}, NO_IMAGE),
}
"""What comes of each method if a stranger calls it on what is root's: an error, or a reply that tells nothing."""


def test_there_is_an_expectation_for_every_method() -> None:
    assert sorted(STRANGER) == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_a_stranger_gets_nowhere(daemon: RunningDaemon, roots: CountingProgram, method: str) -> None:
    parameters, expected = STRANGER[method]
    given = {key: roots.pid if value == "roots" else value for key, value in parameters.items()}
    before = {verb: daemon.crctl(verb) for verb in ("images", "targets", "requests")}
    code, reply = call_as(daemon, NOBODY, method, **given)
    if isinstance(expected, str):
        assert code == expected
        assert f"uid={NOBODY}" in audit(daemon, method)[-1]
        assert f"outcome={expected}" in audit(daemon, method)[-1]
    else:
        assert code == ""
        assert {key: reply[key] for key in expected} == expected
    after = {verb: daemon.crctl(verb) for verb in ("images", "targets", "requests")}
    assert without_times(after) == without_times(before)
    roots.assert_unharmed()


def without_times(value: Any) -> str:
    return re.sub(r"'next_at': '[^']*'", "", str(value))


@pytest.mark.parametrize("method", METHODS)
def test_unless_it_is_public_nobody_else_even_connects(home: Path, daemon: RunningDaemon, method: str) -> None:
    daemon.socket.chmod(0o660)  # as it is without api.public
    try:
        assert call_as(daemon, NOBODY, method)[0] == DENIED
    finally:
        daemon.socket.chmod(0o666)


def audit(daemon: RunningDaemon, method: str) -> list[str]:
    return [line for line in daemon.log.splitlines() if f" method={INTERFACE}.{method} " in line]


def test_the_audit_log_says_who_asked_for_what(daemon: RunningDaemon, home: Path) -> None:
    daemon.crctl("pin", "1")
    daemon.crctl("pin", "1", "--remove")
    last = audit(daemon, "Pin")[-1]
    assert " info asked " in last
    assert re.search(r" event=api\.call pid=\d+ uid=0 method=io\.crd\.Pin object=1 outcome=ok$", last), last
    forged = "counter@latest\n2026-01-01 00:00:00,000 info asked event=api.call uid=0 outcome=ok \x1b[31m"
    call_as(daemon, NOBODY, "GetImage", reference=forged)
    assert not [line for line in daemon.log.splitlines() if line.startswith("2026-01-01")]
    assert "\x1b" not in daemon.log
    assert "\\x0a" in audit(daemon, "GetImage")[-1]


def test_long_lists_come_in_pages_and_a_cursor_opens_nothing(daemon: RunningDaemon) -> None:
    user = 65531
    with closing(sqlite3.connect(daemon.state / "catalog.db", timeout=60)) as catalog, catalog:
        columns = [row[1] for row in catalog.execute("PRAGMA table_info(images)")]
        values = ", ".join({"crid": "crid + value", "uid": str(user), "target": "'many'"}.get(name, name)
                           for name in columns)
        catalog.execute(f"WITH RECURSIVE numbers(value) AS (SELECT 100000 UNION ALL SELECT value + 1 FROM numbers "
                        f"WHERE value < 100599) INSERT INTO images ({', '.join(columns)}) "
                        f"SELECT {values} FROM images, numbers WHERE crid = 1")
    try:
        _, first = call_as(daemon, user, "ListImages")
        _, rest = call_as(daemon, user, "ListImages", cursor=first["cursor"])
        crids = [image["crid"] for image in (*first["images"], *rest["images"])]
        assert (len(first["images"]), len({*crids}), rest["cursor"]) == (500, 600, None)
        assert crids == sorted(crids, reverse=True)
        assert len(daemon.crctl("images", "many")) == 600
        assert [image["crid"] for image in daemon.crctl("images", "many", "--limit", "550")] == crids[:550]
        assert call_as(daemon, NOBODY, "ListImages", cursor=first["cursor"]) == ("", {"images": [], "cursor": None})
        for method in ("ListImages", "ListRequests"):
            for wrong in ({"cursor": "rubbish"}, {"cursor": "9" * 40}, {"limit": 0}, {"limit": -1}):
                assert call_as(daemon, user, method, **wrong)[0] == "api.bad-request"
    finally:
        with closing(sqlite3.connect(daemon.state / "catalog.db", timeout=60)) as catalog, catalog:
            catalog.execute("DELETE FROM images WHERE uid = ?", (user,))


def test_a_flood_of_denied_calls_does_not_flood_the_log(daemon: RunningDaemon) -> None:
    before = len(audit(daemon, "Scrub"))
    assert run_as(OTHER, lambda: many(daemon, "Scrub", 200)) == [DENIED] * 200
    assert 0 < len(audit(daemon, "Scrub")) - before < 200


def test_a_user_acts_on_what_ran_as_that_user(daemon: RunningDaemon, home: Path) -> None:
    with UsersProgram(home / "users", USER) as program:
        code, reply = call_as(daemon, USER, "Checkpoint", pid=program.pid, after="kill")
        assert code == ""
        crid = reply["image"]["crid"]
        program.process.wait(timeout=60)
        lines = len(program.counts())
        for uid, images in ((USER, [crid]), (OTHER, [])):
            _, listed = call_as(daemon, uid, "ListImages")
            assert [image["crid"] for image in listed["images"]] == images
        assert call_as(daemon, OTHER, "Restart", reference=str(crid))[0] == NO_IMAGE
        code, reply = call_as(daemon, USER, "Restart", reference=str(crid))
        assert code == ""
        number = reply["request"]["number"]
        assert call_as(daemon, OTHER, "GetRequest", number=number)[0] == "catalog.request-not-found"
        code, reply = call_as(daemon, USER, "GetRequest", number=number, wait=True)
        assert reply["request"]["state"] == "done", reply
        eventually("it to count on", lambda: len(program.counts()) > lines + 3)
        status = program.status()
        assert status["Uid"].split() == status["Gid"].split() == [str(USER)] * 4
        assert status["CapPrm"] == status["CapEff"] == "0" * 16
        acts: dict[str, dict[str, Any]] = {
            "Pin": {"pinned": True}, "Verify": {}, "Tag": {"add": ["x"]}, "Note": {"text": "x"}}
        for name, given in acts.items():
            assert call_as(daemon, OTHER, name, reference=str(crid), **given)[0] == NO_IMAGE
        assert call_as(daemon, USER, "Tag", reference=str(crid), add=["good"])[1]["image"]["tags"] == ["good"]
        assert call_as(daemon, USER, "Note", reference=str(crid), text="mine")[1]["image"]["note"] == "mine"
        for uid, images in ((USER, [crid]), (OTHER, [])):
            _, listed = call_as(daemon, uid, "ListImages", tag="good")
            assert [image["crid"] for image in listed["images"]] == images
        assert call_as(daemon, OTHER, "Diff", references=[str(crid)] * 2)[0] == NO_IMAGE
        for mixed in (["1", str(crid)], [str(crid), "1"]):
            assert call_as(daemon, USER, "Diff", references=mixed)[0] == NO_IMAGE, "the other one is root's"
        assert call_as(daemon, USER, "Diff", references=[str(crid)] * 2)[1]["total"]["mappings"] == 0
        for bad in ("x" * 1001, "a\x1b[2Jb", "a\nb", ""):
            assert call_as(daemon, USER, "Note", reference=str(crid), text=bad)[0] == "api.bad-request"
            assert call_as(daemon, USER, "Tag", reference=str(crid), add=[bad])[0] == "api.bad-request"
        assert call_as(daemon, USER, "Tag", reference=str(crid), remove=["bad"])[0] == "catalog.tag-not-found"
        assert call_as(daemon, USER, "Verify", reference=str(crid))[0] == ""
        assert call_as(daemon, USER, "Export", reference=str(crid))[0] == DENIED
        assert call_as(daemon, USER, "Forget", references=[str(crid)])[0] == ""


PRIVILEGED = {
    "setuid": "os.setresuid({user}, 0, 0)",
    "saved root": "os.setresgid({user}, {user}, {user}); os.setresuid({user}, {user}, 0)",
    "setgid": "os.setresgid({user}, 0, {user}); os.setresuid({user}, {user}, {user})",
    "capability": """
        os.setresgid({user}, {user}, {user})
        libc = ctypes.CDLL(None)
        libc.prctl(8, 1, 0, 0, 0)
        os.setresuid({user}, {user}, {user})
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(0, 1 << 13, 0, 0, 0, 0)
        assert libc.capset(header, data) == 0
        """,
}
"""Programs of a user that have more than the user: how they came by it does not matter."""


@pytest.mark.parametrize("kind", PRIVILEGED)
def test_what_has_more_than_its_user_is_roots(daemon: RunningDaemon, home: Path, kind: str) -> None:
    place = home / kind.replace(" ", "-")
    place.mkdir()
    script = "import ctypes, os, textwrap, time\n" + "exec(textwrap.dedent(" + repr(
        PRIVILEGED[kind].format(user=USER)) + "))\nprint('ready', flush=True)\nwhile True: time.sleep(0.1)\n"
    with (place / "out").open("wb") as out:
        program = subprocess.Popen([sys.executable, "-S", "-c", script], cwd=place, stdin=subprocess.DEVNULL,
                                   stdout=out, stderr=out, start_new_session=True)
    try:
        eventually("the program", lambda: "ready" in (place / "out").read_text())
        for method in ("Checkpoint", "Check"):
            assert call_as(daemon, USER, method, pid=program.pid)[0] == DENIED
        image = daemon.crctl("checkpoint", "--pid", str(program.pid))
        assert image["uid"] == 0
        assert call_as(daemon, USER, "Restart", reference=str(image["crid"]))[0] == NO_IMAGE
    finally:
        program.kill()
        program.wait()


def test_a_restart_gives_no_group_back_that_its_user_has_left(daemon: RunningDaemon, home: Path) -> None:
    with UsersProgram(home / "member", USER, groups=[GROUP]) as program:
        _, reply = call_as(daemon, USER, "Checkpoint", pid=program.pid, after="kill")
        crid = str(reply["image"]["crid"])
        program.process.wait(timeout=60)
        for groups, state, error in (((), "failed", DENIED), ((GROUP,), "done", None)):
            _, reply = call_as(daemon, USER, "Restart", groups, reference=crid)
            _, reply = call_as(daemon, USER, "GetRequest", number=reply["request"]["number"], wait=True)
            assert (reply["request"]["state"], reply["request"]["error"]) == (state, error)
            assert program.is_there() == (state == "done")
        assert program.status()["Groups"] == str(GROUP)


@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_path_that_leads_elsewhere_by_now_opens_nothing_that_the_user_may_not(daemon: RunningDaemon, home: Path,
                                                                               what: str) -> None:
    place = home / f"tricks-{what}"
    with UsersProgram(place, USER) as program:
        _, reply = call_as(daemon, USER, "Checkpoint", pid=program.pid, after="kill")
        program.process.wait(timeout=60)
        secret = home / f"secret-{what}"
        secret.mkdir(mode=0o700)
        for name in ("count.log", "program.out"):
            (secret / name).write_text("secret\n")
            (secret / name).chmod(0o600)
        if what == "file":
            program.log.unlink()
            program.log.symlink_to(secret / "count.log")
        else:
            shutil.rmtree(place)
            place.symlink_to(secret)
        _, reply = call_as(daemon, USER, "Restart", reference=str(reply["image"]["crid"]))
        _, reply = call_as(daemon, USER, "GetRequest", number=reply["request"]["number"], wait=True)
        assert reply["request"]["state"] == "failed", reply
        assert not program.is_there()
        assert (secret / "count.log").read_text() == "secret\n"
        if what == "directory":
            place.unlink()
            place.mkdir()


def test_nobody_else_reads_what_crd_keeps(daemon: RunningDaemon, home: Path) -> None:
    kept = [daemon.state, home / "crid", *daemon.state.rglob("*")]
    assert {"lock", "catalog.db", "archive"} <= {path.name for path in kept}
    for path in kept:
        mode = path.lstat().st_mode
        assert not mode & 0o077, f"{path} {stat.filemode(mode)}"
        assert path.lstat().st_uid == 0
    for path in kept:
        if not path.is_dir():
            assert run_as(NOBODY, lambda path=path: reads(path)) is False, path


def reads(path: Path) -> bool:
    try:
        return bool(path.read_bytes()) or True
    except OSError:
        return False


def test_no_secret_is_in_logs_or_metrics(tmp_path: Path) -> None:
    key, secret = tmp_path / "key", secrets.token_hex(16)
    subprocess.run([BIN / "crd", "key", "--new", key], check=True, capture_output=True)
    daemon = RunningDaemon(tmp_path, f'[daemon]\nlog_level = "debug"\n[encryption]\nkeys = ["{key}"]\n')
    daemon.environment |= {"AWS_SECRET_ACCESS_KEY": secret, "CRD_S3__CREDENTIALS": str(tmp_path / "none")}
    script = "import sys, time\nprint('ready', flush=True)\nwhile True: time.sleep(0.1)\n"
    with (tmp_path / "out").open("wb") as out:
        program = subprocess.Popen([sys.executable, "-S", "-c", script, secret], stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=out, cwd=tmp_path, start_new_session=True,
                                   env={"TOKEN": secret, "PATH": os.environ["PATH"]})
    try:
        with daemon:
            eventually("the program", lambda: "ready" in (tmp_path / "out").read_text())
            image = daemon.crctl("checkpoint", "--pid", str(program.pid))
            with pytest.raises(Refused):
                daemon.crctl("restart", str(image["crid"]), "--wait")
            daemon.crctl("verify", str(image["crid"]))
            told = daemon.log + str(daemon.metrics()) + str(daemon.crctl("status")) + str(daemon.crctl("images"))
    finally:
        program.kill()
        program.wait()
    assert "image taken" in told
    hidden = [secret, *(line for line in key.read_text().split() if len(line) > 20)]
    assert len(hidden) > 1
    assert not [word for word in hidden if word in told]


def test_a_user_who_floods_harms_nobody_else(daemon: RunningDaemon, roots: CountingProgram, home: Path) -> None:
    """Connections by the hundred, calls that are never ended, replies that are never read, checkpoints by the dozen."""
    with UsersProgram(home / "flooder", OTHER) as program:
        code = (f"import os, socket, sys, time\nos.setgroups([]); os.setresgid({OTHER},{OTHER},{OTHER})\n"
                f"os.setresuid({OTHER},{OTHER},{OTHER})\n"
                "held = []\n"
                "while True:\n"
                "    try:\n"
                "        one = socket.socket(socket.AF_UNIX); one.setblocking(False); one.connect(sys.argv[1])\n"
                f"        one.send([b'{{', b'{{\"method\":\"io.crd.GetStatus\"}}\\0' * 60, b'{{\"method\":"
                f"\"io.crd.Checkpoint\",\"parameters\":{{\"pid\":{program.pid},\"wait\":false}}}}\\0' * 60]"
                "[len(held) % 3]); held.append(one)\n"
                "    except OSError: time.sleep(0.001)\n"
                "    if len(held) == 100: print('flooding', flush=True)\n"
                "    if len(held) > 300: held.pop(0).close()\n")
        flood = subprocess.Popen([sys.executable, "-S", "-c", code, daemon.socket], stdout=subprocess.PIPE)
        try:
            assert flood.stdout is not None
            assert flood.stdout.readline() == b"flooding\n"
            for _ in range(3):
                assert daemon.crctl("checkpoint", "counter")["target"] == "counter"
            assert daemon.crctl("status")["running"] <= 6
        finally:
            flood.kill()
            flood.wait()
            flood.stdout.close()
        program.assert_unharmed()
        roots.assert_unharmed()
        eventually("the flood to be over", lambda: daemon.crctl("status")["running"] == 0)


def test_requests_of_a_user_are_bounded(daemon: RunningDaemon, home: Path) -> None:
    with UsersProgram(home / "busy", USER) as program:
        _, reply = call_as(daemon, USER, "Checkpoint", pid=program.pid)
        crid = str(reply["image"]["crid"])
        with daemon.without_workers():
            codes = run_as(USER, lambda: many(daemon, "Restart", 120, reference=crid))
            assert codes.count("") in {100, 101}, "one of them may have been claimed"
            assert codes.count("catalog.queue-full") in {19, 20}
            daemon.crctl("restart", "1")  # others still may
        eventually("the queue to be empty", lambda: daemon.crctl("status")["queue"]["queued"] == 0, seconds=300)
        program.assert_unharmed()


def many(daemon: RunningDaemon, method: str, times: int, **parameters: Any) -> list[str]:
    """Call a method again and again on one connection; return the codes of the errors."""
    from crd.api.client import Client
    from crd.errors import CrdError

    codes = []
    with Client(daemon.socket) as client:
        for _ in range(times):
            try:
                client.call(method, **parameters)
                codes.append("")
            except CrdError as error:
                codes.append(error.code)
    return codes
