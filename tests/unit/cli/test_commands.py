from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from crd.errors import AccessDenied, BlobCorrupt, Busy, SettingsError, TargetUnsupported
from tests.unit.cli.conftest import (
    DIFFERENCE,
    IMAGE,
    OBSTACLE,
    PLAN,
    PROBLEM,
    REQUEST,
    SCRUBBED,
    SHARING,
    STATUS,
    SWEPT,
    TARGET,
    VERDICT,
)

if TYPE_CHECKING:
    from pathlib import Path

    from crd.errors import ImageNotFound
    from tests.unit.cli.conftest import Crctl, Daemon


@pytest.fixture
def crctl(crctl_: Crctl, daemon: Daemon) -> Crctl:
    return crctl_


def test_status(crctl: Crctl) -> None:
    assert crctl.json("status") == STATUS
    text = crctl("status")
    assert "0.1.0 on db1, pid 99" in text
    assert "userspace, without clone3" in text
    assert "3 images, 2 KiB in /var/lib/crd/archive" in text
    assert "4 KiB in 3 objects wait: s3://bucket: no answer" in text
    assert "2 queued" in text


def test_what_is_wrong_is_said_and_shows_in_the_exit_status(crctl: Crctl, daemon: Daemon) -> None:
    daemon.replies["GetStatus"] = [STATUS | {"queue": None, "problems": [PROBLEM | {"level": "warning"}]}]
    assert "warning: target web" in crctl("status")
    daemon.replies["GetStatus"] = [STATUS | {"problems": [PROBLEM]}]
    text = crctl("status", status=3)
    assert "error: target web: no process \\x1b fits (target.not-found), since 2026-11-23" in text
    assert text.endswith("\n  -> Start it.\n")
    assert json.loads(crctl("status", "--json", status=3))["problems"] == [PROBLEM]


def test_adopt(crctl: Crctl, daemon: Daemon) -> None:
    assert crctl("adopt", "--target", "web", status=3) == "42\n"
    assert crctl.err == "image 43: it is \\x1b damaged\n"
    assert daemon.parameters == {"target": "web"}
    assert json.loads(crctl("adopt", "--json", status=3)) == {"images": 2, "adopted": 1, "failed": 1}
    daemon.replies["Adopt"] = [{"images": 0, "adopted": 0, "failed": 0}]
    assert crctl("adopt") == ""


def test_reload(crctl: Crctl, daemon: Daemon) -> None:
    assert crctl.json("reload") == {"targets": 3, "waiting": ["archive.level", "api.public"]}
    assert "archive.level, api.public" in crctl("reload")
    daemon.replies["Reload"] = SettingsError("crd.toml:4: engine.workers: too many")
    assert crctl.error("reload", status=2)["message"] == "crd.toml:4: engine.workers: too many"


class TestTargets:
    def test_list(self, crctl: Crctl) -> None:
        assert crctl.json("targets") == [TARGET]
        assert "pidfile /run/web.pid  every 30s" in crctl("targets")
        assert "no process fits" in crctl("targets")

    def test_add(self, crctl: Crctl, daemon: Daemon) -> None:
        assert crctl.json("target", "add", "web", "--pid", "7", "--every", "30s", "--jitter", "5s") == TARGET
        assert daemon.calls == [("AddTarget", {"target": {
            "name": "web", "held": False, "pid": 7, "every": "30s", "jitter": "5s",
            **dict.fromkeys(("pidfile", "comm", "unit", "cgroup", "on_calendar", "cron", "keep", "save_files", "files",
                             "at_shutdown", "at_boot", "source", "last", "next_at"))}})]
        crctl("target", "add", "web", "--pid", "7", "--every", "30s", "--save-files", "16MiB", "--files", "rollback")
        assert daemon.parameters["target"]["save_files"] == "16MiB"
        assert daemon.parameters["target"]["files"] == "rollback"
        crctl("target", "add", "web", "--unit", "web", "--every", "30s", "--at-shutdown", "--at-boot", "any")
        assert daemon.parameters["target"]["at_shutdown"] is True
        assert daemon.parameters["target"]["at_boot"] == "any"

    def test_pid_files_are_named_as_the_daemon_finds_them(self, crctl: Crctl, daemon: Daemon, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        crctl("target", "add", "web", "--pidfile", "web.pid", "--on-calendar", "hourly")
        assert daemon.parameters["target"]["pidfile"] == f"{tmp_path}/web.pid"
        assert daemon.parameters["target"]["on_calendar"] == "hourly"

    @pytest.mark.parametrize("words", [
        (), ("--pid", "7"), ("--every", "30s"), ("--pid", "7", "--comm", "x", "--every", "30s"),
        ("--pid", "7", "--every", "30s", "--cron", "* * * * *"), ("--pid", "0", "--every", "30s"),
        ("--pid", "x", "--every", "30s")])
    def test_exactly_one_process_and_one_schedule(self, crctl: Crctl, daemon: Daemon, words: tuple[str, ...]) -> None:
        assert crctl.error("target", "add", "web", *words, status=2)["error"] == "usage"
        assert not daemon.calls

    @pytest.mark.parametrize(("verb", "method"), [
        ("remove", "RemoveTarget"), ("hold", "HoldTarget"), ("resume", "ResumeTarget")])
    def test_changes(self, crctl: Crctl, daemon: Daemon, verb: str, method: str) -> None:
        assert crctl.json("target", verb, "web") == {"name": "web"}
        assert crctl("target", verb, "web") == ""
        assert daemon.calls == [(method, {"name": "web"})] * 2

    @pytest.mark.parametrize("verb", ["add", "remove", "hold", "resume"])
    def test_names_are_checked_first(self, crctl: Crctl, daemon: Daemon, verb: str) -> None:
        assert crctl.error("target", verb, "../x", status=2)["error"] == "api.bad-request"
        assert not daemon.calls


class TestCheckpoint:
    def test_prints_the_crid(self, crctl: Crctl, daemon: Daemon) -> None:
        assert crctl("checkpoint", "web") == "42\n"
        assert daemon.parameters == {"target": "web", "wait": True}
        assert not crctl.err

    def test_options(self, crctl: Crctl, daemon: Daemon) -> None:
        assert crctl.json("checkpoint", "--pid", "7", "--kill", "--tag", "night") == IMAGE
        assert daemon.parameters == {"pid": 7, "after": "kill", "tag": "night", "wait": True}
        crctl("checkpoint", "web", "--stop")
        assert daemon.parameters["after"] == "stop"

    def test_without_waiting(self, crctl: Crctl, daemon: Daemon) -> None:
        daemon.replies["Checkpoint"] = [{"stage": "freeze"}]
        assert crctl("checkpoint", "web", "--no-wait") == ""
        assert daemon.parameters == {"target": "web", "wait": False}

    @pytest.mark.parametrize("words", [(), ("web", "--pid", "7"), ("--pid", "-1"), ("--pid", "2.5")])
    def test_a_target_or_a_pid(self, crctl: Crctl, daemon: Daemon, words: tuple[str, ...]) -> None:
        crctl.error("checkpoint", *words, status=2)
        assert not daemon.calls

    def test_obstacles(self, crctl: Crctl, daemon: Daemon) -> None:
        daemon.replies["Checkpoint"] = TargetUnsupported.from_json(
            {"error": "target.unsupported", "reasons": [OBSTACLE]})
        assert crctl.error("checkpoint", "web", status=13)["reasons"] == [OBSTACLE]
        crctl("checkpoint", "web", status=13)
        assert crctl.err == "crctl: fd 0 (/dev/pts/1): is a terminal\nredirect it\n"

    def test_busy(self, crctl: Crctl, daemon: Daemon) -> None:
        daemon.replies["Checkpoint"] = Busy("web is being checkpointed")
        assert crctl.error("checkpoint", "web", status=14)["retryable"] is True

    def test_a_daemon_that_forgets_the_image(self, crctl: Crctl, daemon: Daemon) -> None:
        daemon.replies["Checkpoint"] = [{"stage": "memory"}]
        assert "without an image" in crctl.error("checkpoint", "web", status=10)["message"]


class TestImages:
    def test_list(self, crctl: Crctl, daemon: Daemon) -> None:
        assert crctl.json("images") == [IMAGE]
        assert daemon.parameters == {}
        header, row = crctl("images", "web", "--limit", "3").splitlines()
        assert daemon.parameters == {"target": "web", "limit": 3}
        assert header.split()[:3] == ["CRID", "TARGET", "PID"]
        assert row.split()[:3] == ["42", "web", "4242"]
        assert "12 MiB" in row
        assert "2.1 ms" in row
        assert "\x1b" not in row

    def test_since(self, crctl: Crctl, daemon: Daemon) -> None:
        crctl("images", "--since", "2026-11-23T10:00+01:00")
        assert daemon.parameters == {"since": "2026-11-23T09:00:00+00:00"}
        before = datetime.now(UTC)
        crctl("images", "--since", "10 min ago")
        since = datetime.fromisoformat(daemon.parameters["since"])
        assert 0 <= (since - before).total_seconds() + 600 < 60

    def test_tags(self, crctl: Crctl, daemon: Daemon) -> None:
        assert crctl("images", "--tag", "night").splitlines()[1].endswith("ok, pinned [night]")
        assert daemon.parameters == {"tag": "night"}
        assert crctl.json("tag", "42", "good", "before upgrade", "--remove", "bad", "--remove", "x\x1b") == IMAGE
        assert daemon.parameters == {"reference": "42", "add": ["good", "before upgrade"], "remove": ["bad", "x\x1b"]}
        assert crctl("tag", "42", "--remove", "bad") == ""
        assert daemon.parameters == {"reference": "42", "add": [], "remove": ["bad"]}

    def test_notes(self, crctl: Crctl, daemon: Daemon) -> None:
        assert crctl.json("note", "42", "before", "the upgrade") == IMAGE
        assert daemon.parameters == {"reference": "42", "text": "before the upgrade"}
        assert crctl("note", "--remove", "42") == ""
        assert daemon.parameters == {"reference": "42"}
        assert "as it was\\x1b[2J" in crctl("show", "42")

    @pytest.mark.parametrize("words", [
        ("tag", "42"), ("tag", "???", "good"), ("tag", "42", ""), ("tag", "42", " good"), ("tag", "42", "a\nb"),
        ("tag", "42", "x" * 129), ("note", "42"), ("note", "42", "text", "--remove"), ("note", "42", ""),
        ("note", "42", "a\x1b[2J"), ("note", "42", "a\udc80"), ("note", "42", "x" * 1001), ("note", "???", "text")])
    def test_words_that_nobody_shall_read(self, crctl: Crctl, daemon: Daemon, words: tuple[str, ...]) -> None:
        crctl.error(*words, status=2)
        assert not daemon.calls

    def test_diff(self, crctl: Crctl, daemon: Daemon) -> None:
        assert crctl.json("diff", "42", "web@latest", "--limit", "7") == DIFFERENCE
        assert daemon.parameters == {"references": ["42", "web@latest"], "limit": 7}
        text = crctl("diff", "42", "43")
        assert daemon.parameters["limit"] == 100
        lines = [" ".join(line.split()) for line in text.splitlines()]
        for line in (
                "image 42 43", "target web -",
                "Taken 30 s later; 3 pages changed (12 KiB), 2 pages added (8 KiB), 1 pages removed (4 KiB), 100 equal",
                "5 new\\x1b new 2", "6 old gone 2", "7 cat was sh 3 -> 2 (2 gone, 1 new)",
                "Mappings that differ: 9, these are the first 3", "7 1000-4000 rw-p was 1000-3000 3 2 - [heap]",
                "7 1000-3000 rw-p gone - - 1 /lib", "7 1000-3000 r--p was rw-p [heap] - - - [heap]",
                "Open files that differ: 3", "7 3 - 10 -> 20 /log\\x1b[2J",
                "7 4 was /log\\x1b[2J flags were 0o2001 10 -> - [pipe]", "7 5 new 10 /log\\x1b[2J"):
            assert line in lines
        assert "kernel" not in text, "it is the same"
        nothing = {"total": dict.fromkeys(DIFFERENCE["total"], 0), "tasks": [], "memory": [], "files": []}
        daemon.replies["Diff"] = [DIFFERENCE | nothing]
        assert crctl("diff", "42", "43").endswith("Tasks, mappings and open files are the same.\n")
        for words in (("42",), ("42", "43", "44"), ("42", "???"), ("42", "43", "--limit", "0")):
            crctl.error("diff", *words, status=2)

    @pytest.mark.parametrize("words", [("--since", "yesterday"), ("--limit", "0"), ("a/b",)])
    def test_what_makes_no_sense(self, crctl: Crctl, daemon: Daemon, words: tuple[str, ...]) -> None:
        crctl.error("images", *words, status=2)
        assert not daemon.calls

    def test_none(self, crctl: Crctl, daemon: Daemon) -> None:
        daemon.replies["ListImages"] = [{"images": []}]
        assert crctl.json("images") == []
        assert len(crctl("images").splitlines()) == 1

    @pytest.mark.parametrize("reference", ["42", "web@latest", 'web@"10 min ago"', "db1/42"])
    def test_show(self, crctl: Crctl, daemon: Daemon, reference: str) -> None:
        assert crctl.json("show", reference) == {**IMAGE, "retention": VERDICT, "sharing": SHARING}
        assert daemon.parameters == {"reference": reference}
        text = crctl("show", reference)
        assert "wor\\x1b]0;ker" in text
        assert "12 MiB, 1.5 KiB stored" in text
        assert "kept: last 1 of 3; daily 1 of 7" in text
        assert "12 in 1 packs of its own, 3000 in 2 packs that others need, too" in text

    @pytest.mark.parametrize("verb", ["show", "restart"])
    def test_references_are_checked_first(self, crctl: Crctl, daemon: Daemon, verb: str) -> None:
        assert crctl.error(verb, "???", status=2)["hint"]
        assert not daemon.calls

    def test_missing(self, crctl: Crctl, daemon: Daemon, missing: ImageNotFound) -> None:
        daemon.replies["GetImage"] = missing
        assert crctl.error("show", "4711", status=11) == missing.to_json()
        crctl("show", "4711", status=11)
        assert crctl.err == "crctl: there is no image 4711\ncrctl images lists them.\n"


class TestAttach:
    def test_names_a_process_or_a_request(self, crctl: Crctl, daemon: Daemon) -> None:
        for words in ((), ("42", "--request", "7"), ("0",), ("42", "--key", "escape")):
            crctl("attach", *words, status=2)
        assert not daemon.calls

    def test_a_terminal_that_nobody_gives(self, crctl: Crctl, daemon: Daemon) -> None:
        crctl("attach", "42", status=14)
        assert crctl.err == "crctl: nobody holds the terminal any more\n"
        assert daemon.parameters["pid"] == 42
        crctl("attach", "--request", "7", "--key", "none", status=14)
        assert daemon.parameters["request"] == 7

    def test_a_restart_at_the_callers_terminal_needs_one(self, crctl: Crctl, daemon: Daemon) -> None:
        crctl.error("restart", "42", "--stdio", "inherit", status=2)
        assert not daemon.calls


class TestRestart:
    def test_prints_the_number(self, crctl: Crctl, daemon: Daemon) -> None:
        assert crctl("restart", "web@latest") == "7\n"
        assert daemon.parameters == {"reference": "web@latest", "pids": "original", "tcp": "auto", "stdio": "pty"}

    def test_options(self, crctl: Crctl, daemon: Daemon) -> None:
        assert crctl.json("restart", "42", "--pidns", "--files", "fail") == REQUEST
        assert daemon.parameters == {"reference": "42", "pids": "namespace", "files": "fail", "tcp": "auto",
                                     "stdio": "pty"}
        crctl("restart", "42", "--stdio", "null")
        assert daemon.parameters["stdio"] == "null"
        crctl("restart", "42", "--new-pids")
        assert daemon.parameters["pids"] == "new"
        crctl("restart", "42", "--files", "rollback")
        assert daemon.parameters["files"] == "rollback"
        crctl.error("restart", "42", "--files", "lose", status=2)
        crctl("restart", "42", "--tcp", "close")
        assert daemon.parameters["tcp"] == "close"
        crctl("restart", "42", "--force-version")
        assert daemon.parameters["force_version"] is True

    def test_plan(self, crctl: Crctl, daemon: Daemon) -> None:
        assert crctl.json("restart", "42", "--plan", "--pidns") == PLAN
        assert daemon.calls == [("PlanRestart", {"reference": "42", "pids": "namespace", "tcp": "auto",
                                                   "stdio": "pty"})]
        text = crctl("restart", "42", "--plan")
        assert "Nothing stands in the way." in text
        assert "\x1b" not in text
        clash = {"error": "restart.pid-in-use", "message": "pid 4242 is in use", "hint": "End it."}
        daemon.replies["PlanRestart"] = [{**PLAN, "clashes": [clash] * 2}]
        text = crctl("restart", "42", "--plan", status=14)
        assert "2 things stand in the way:\n\n  pid 4242 is in use\n    -> End it.\n" in text

    def test_waits_for_the_end(self, crctl: Crctl, daemon: Daemon) -> None:
        assert crctl("restart", "42", "--wait") == "7\npid 4242\n"
        assert daemon.calls[-1] == ("GetRequest", {"number": 7, "wait": True})
        ended = crctl.json("restart", "42", "--wait")
        assert (ended["state"], ended["root_pid"]) == ("done", 4242)

    def test_a_failed_restart_fails_with_its_reason(self, crctl: Crctl, daemon: Daemon) -> None:
        daemon.replies["GetRequest"] = [{"request": {
            **REQUEST, "state": "failed", "error": "restart.pid-in-use", "message": "pid 4242 is in use",
            "hint": "Try --new-pids."}}]
        error = crctl.error("restart", "42", "--wait", status=14)
        assert (error["error"], error["message"], error["request"]) == ("restart.pid-in-use", "pid 4242 is in use", 7)
        assert crctl("restart", "42", "--wait", status=14) == "7\n"
        assert crctl.err == "crctl: pid 4242 is in use\nTry --new-pids.\n"

    def test_a_cancelled_restart_is_no_success(self, crctl: Crctl, daemon: Daemon) -> None:
        daemon.replies["GetRequest"] = [{"request": {**REQUEST, "state": "cancelled"}}]
        assert "was cancelled" in crctl.error("restart", "42", "--wait", status=1)["message"]

    def test_denied(self, crctl: Crctl, daemon: Daemon) -> None:
        daemon.replies["Restart"] = AccessDenied("image 42 is of another user")
        crctl.error("restart", "42", status=12)


class TestForget:
    def test_by_name(self, crctl: Crctl, daemon: Daemon) -> None:
        daemon.replies["Forget"] = [{"verdicts": [{**VERDICT, "keep": False, "reasons": ["named to be forgotten"]}]}]
        assert crctl("forget", "42", "web@latest").splitlines()[1].endswith("forgotten  named to be forgotten")
        assert daemon.parameters == {"references": ["42", "web@latest"], "dry_run": False}

    def test_by_rules(self, crctl: Crctl, daemon: Daemon) -> None:
        assert crctl.json("forget", "--target", "web", "--dry-run") == [VERDICT]
        assert daemon.parameters == {"target": "web", "dry_run": True}
        assert "kept     last 1 of 3; daily 1 of 7" in crctl("forget")
        assert daemon.parameters == {"dry_run": False}
        daemon.replies["Forget"] = [{"verdicts": [{**VERDICT, "keep": False}]}]
        assert "to be forgotten" in crctl("forget", "--dry-run")

    def test_what_is_still_there_shows_in_the_status(self, crctl: Crctl, daemon: Daemon) -> None:
        daemon.replies["Forget"] = [{"verdicts": [{**VERDICT, "keep": False, "error": "the disk failed"}]}]
        assert "the disk failed" in crctl("forget", status=3)

    @pytest.mark.parametrize("words", [("42", "--target", "web"), ("???",), ("--target", "../x")])
    def test_what_makes_no_sense(self, crctl: Crctl, daemon: Daemon, words: tuple[str, ...]) -> None:
        crctl.error("forget", *words, status=2)
        assert not daemon.calls

    def test_pins(self, crctl: Crctl, daemon: Daemon) -> None:
        assert crctl.json("pin", "42") == IMAGE
        assert daemon.parameters == {"reference": "42", "pinned": True}
        assert crctl("pin", "--remove", "42") == ""
        assert daemon.parameters["pinned"] is False


class TestIntegrity:
    def test_verify(self, crctl: Crctl, daemon: Daemon) -> None:
        assert crctl("verify", "42") == "image 42: 12 MiB, all as stored\n"
        assert daemon.parameters == {"reference": "42", "restart": False}
        rehearsal = {"tasks": 1, "threads": 3, "seconds": 0.02, "notes": ["no ballast"], "ran": True, "hindrance": "",
                     "seen": [{"pid": 7, "comm": "cron\x1b", "what": "ran"}]}
        daemon.replies["Verify"] = [{"image": IMAGE, "rehearsal": rehearsal}]
        assert crctl("verify", "42", "--restart").splitlines()[1:] == [
            "can be restarted: tasks 1, threads 3, tried in 20 ms", "process 7 (cron\\x1b): ran", "note: no ballast"]
        daemon.replies["Verify"] = [{"image": IMAGE, "rehearsal": rehearsal | {
            "ran": False, "hindrance": "no overlays", "seen": [], "notes": []}}]
        assert crctl("verify", "42", "--restart").splitlines()[1:] == [
            "can be restarted: tasks 1, threads 3, made in 20 ms", "not let run: no overlays"]
        assert daemon.parameters["restart"] is True

    def test_damage(self, crctl: Crctl, daemon: Daemon) -> None:
        daemon.replies["Verify"] = BlobCorrupt("a frame is damaged")
        assert crctl.error("verify", "42", status=1)["error"] == "archive.blob-corrupt"
        daemon.replies["GetImage"] = [{"image": {**IMAGE, "state": "damaged", "damage": "a frame is damaged"}}]
        assert "damaged: a frame is damaged" in crctl("show", "42")

    def test_scrub(self, crctl: Crctl, daemon: Daemon) -> None:
        assert crctl.json("scrub") == SCRUBBED
        assert crctl("scrub") == "2 images, 4 KiB read; damaged: none\n"
        daemon.replies["Scrub"] = [{**SCRUBBED, "damaged": [7]}]
        assert crctl("scrub", status=1).endswith("damaged: 7\n")


    def test_sweep(self, crctl: Crctl, daemon: Daemon) -> None:
        assert crctl.json("sweep") == SWEPT
        assert crctl("sweep") == "4 KiB given back, of 1 forgotten images and 2 packs; 3 old restart requests dropped\n"
        daemon.replies["Sweep"] = [SWEPT | {"images": 0, "packs": 0, "bytes": 0, "requests": 0}]
        assert crctl("sweep") == "There was nothing to remove.\n"
        daemon.replies["Sweep"] = [SWEPT | {"hindrance": "image 7 \x1b cannot be read"}]
        crctl("sweep", status=3)
        assert crctl.err == "packs had to stay: image 7 \\x1b cannot be read\n"


class TestRequests:
    def test_list(self, crctl: Crctl, daemon: Daemon) -> None:
        assert crctl.json("requests", "--limit", "5") == [REQUEST]
        assert daemon.parameters == {"limit": 5}
        assert crctl("requests").splitlines()[1].split()[:3] == ["7", "42", "queued"]

    def test_show(self, crctl: Crctl, daemon: Daemon) -> None:
        assert crctl.json("request", "show", "7")["state"] == "done"
        assert daemon.parameters == {"number": 7}
        assert "4242" in crctl("request", "show", "7")

    def test_cancel(self, crctl: Crctl) -> None:
        assert crctl.json("request", "cancel", "7")["state"] == "cancelled"
        assert "cancelled" in crctl("request", "cancel", "7")

    @pytest.mark.parametrize("number", ["0", "-1", "x"])
    def test_numbers(self, crctl: Crctl, number: str) -> None:
        crctl.error("request", "show", number, status=2)


class TestShutdown:
    def test_it_says_what_was_saved(self, crctl: Crctl, daemon: Daemon) -> None:
        assert crctl("save-for-shutdown", "web.service") == "web: image 42\n"
        assert daemon.parameters == {"unit": "web.service"}
        assert crctl.json("save-for-shutdown", "web.service") == [{"target": "web", "crid": 42}]

    def test_and_what_was_not(self, crctl: Crctl, daemon: Daemon) -> None:
        daemon.replies["SaveForShutdown"] = [{"targets": [{"target": "web", "message": "it is \x1b busy"}]}]
        said = crctl("save-for-shutdown", "web.service", status=3)
        assert said.startswith("web: not saved: it is ")
        assert "\x1b" not in said


class TestCheck:
    def test_nothing_stands_in_the_way(self, crctl: Crctl, daemon: Daemon) -> None:
        assert crctl.json("check", "4242")["obstacles"] == []
        assert daemon.parameters == {"pid": 4242}
        assert crctl("check", "4242") == "4242 (worker) can be checkpointed.\n  fd 1 is kept.\n"

    def test_obstacles(self, crctl: Crctl, daemon: Daemon) -> None:
        daemon.replies["Check"] = [{"pid": 4242, "comm": "worker", "obstacles": [OBSTACLE], "notes": []}]
        text = crctl("check", "4242", status=13)
        assert "is a terminal" in text
        assert "redirect it" in text
        assert OBSTACLE["code"] in crctl("check", "4242", "--json", status=13)
