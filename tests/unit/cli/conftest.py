from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from crd.api import interface
from crd.cli.main import crctl
from crd.console.program import status_of
from crd.errors import CrdError, ImageNotFound
from tests.support.api import serving

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from crd.api.access import Peer

OURS = interface.load("io.crd")

IMAGE = {
    "crid": 42, "host": "db1", "target": "web", "pid": 4242, "comm": "wor\x1b]0;ker", "uid": 1000,
    "taken_at": "2026-11-23T10:00:00.5+00:00", "engine": "userspace", "method": "snapshot", "method_reason": "",
    "state": "ok", "tasks": 1, "threads": 3, "image_bytes": 12_582_912, "memory_bytes": 12_000_000,
    "stored_bytes": 1536, "stop_seconds": 0.0021, "duration_seconds": 0.25, "digest": "ab" * 32, "tags": ["night"],
    "header": {"magic": "0x00feed0cc0a2d200", "kernel": "6.18.0", "rev": 14, "flags": 0, "time": 1_795_000_000,
               "release": "6.18.0-crd", "version": "#1", "machine": "x86_64"},
    "pinned": True, "verified_at": None, "damage": None, "note": "as it was\x1b[2J"}
VERDICT = {"crid": 42, "target": "web", "taken_at": "2026-11-23T10:00:00.5+00:00", "stored_bytes": 1536, "keep": True,
           "reasons": ["last 1 of 3", "daily 1 of 7"], "error": None}
SHARING = {"own_pages": 12, "own_packs": 1, "shared_pages": 3000, "shared_packs": 2}
SCRUBBED = {"images": 2, "checked": 2, "bytes": 4096, "damaged": []}
SWEPT = {"images": 1, "packs": 2, "bytes": 4096, "requests": 3, "hindrance": None}
AREA = {"start": 0x1000, "end": 0x3000, "flags": "rw-p", "path": "[heap]"}
OPEN_FILE = {"path": "/log\x1b[2J", "flags": 0o2001, "position": 10}
DIFFERENCE = {
    "before": IMAGE, "after": {**IMAGE, "crid": 43, "target": None, "taken_at": "2026-11-23T10:00:30.5+00:00"},
    "total": {"tasks": 3, "mappings": 9, "files": 3, "equal_pages": 100, "changed_pages": 3, "added_pages": 2,
              "removed_pages": 1},
    "tasks": [{"pid": 5, "before": None, "after": {"comm": "new\x1b", "threads": 2}, "threads_gone": 0,
               "threads_new": 1},
              {"pid": 6, "before": {"comm": "old", "threads": 2}, "after": None, "threads_gone": 1, "threads_new": 0},
              {"pid": 7, "before": {"comm": "sh", "threads": 3}, "after": {"comm": "cat", "threads": 2},
               "threads_gone": 2, "threads_new": 1}],
    "memory": [{"pid": 7, "before": AREA, "after": {**AREA, "end": 0x4000}, "changed_pages": 3, "added_pages": 2,
                "removed_pages": 0},
               {"pid": 7, "before": {**AREA, "path": "/lib"}, "after": None, "changed_pages": 0, "added_pages": 0,
                "removed_pages": 1},
               {"pid": 7, "before": AREA, "after": {**AREA, "flags": "r--p"}, "changed_pages": 0, "added_pages": 0,
                "removed_pages": 0}],
    "files": [{"pid": 7, "fd": 3, "before": OPEN_FILE, "after": {**OPEN_FILE, "position": 20}},
              {"pid": 7, "fd": 4, "before": OPEN_FILE, "after": {"path": "[pipe]", "flags": 0, "position": None}},
              {"pid": 7, "fd": 5, "before": None, "after": OPEN_FILE}]}
REQUEST = {
    "number": 7, "host": "db1", "crid": 42, "state": "queued", "pids": "original", "files": "keep", "tcp": "auto",
    "stdio": "pty", "force_version": False, "uid": 0, "requested_at": "2026-11-23T10:00:00+00:00", "started_at": None,
    "ended_at": None, "root_pid": None, "error": None, "message": None, "hint": None}
ATTEMPT = {"number": 1, "target": "web", "pid": 1, "state": "failed", "crid": None,
           "started_at": "2026-11-23T10:00:00+00:00", "ended_at": None, "error": "target.not-found",
           "message": "no process fits"}
TARGET = {"name": "web", "pid": None, "pidfile": "/run/web.pid", "comm": None, "unit": None, "cgroup": None,
          "every": "30s", "on_calendar": None, "cron": None, "jitter": None, "keep": "last=3", "held": False,
          "source": "settings", "last": ATTEMPT, "next_at": "2126-11-23T10:00:00+00:00"}
STATUS = {"version": "0.1.0", "host": "db1", "pid": 99, "started_at": "2026-11-23T09:00:00+00:00",
          "engine": "userspace", "features": {"pagemap_scan": True, "clone3": False}, "targets": 1, "running": 0,
          "archive": {"path": "/var/lib/crd/archive", "bytes": 2048, "images": 3,
                      "spool": {"objects": 3, "bytes": 4096, "error": "s3://bucket: no answer"}},
          "queue": {"queued": 2, "running": 1, "oldest_at": "2026-11-23T10:00:00+00:00"}, "next_target": "web",
          "next_at": "2126-11-23T10:00:00+00:00", "metrics": "127.0.0.1:9643",
          "hosts": [{"name": "db1", "seen_at": "2026-11-23T10:00:00+00:00"}], "problems": []}
PROBLEM = {"level": "error", "code": "target.not-found", "object": "target web", "message": "no process \x1b fits",
           "hint": "Start it.", "since": "2026-11-23T10:00:00+00:00"}
PLAN = {"crid": 42, "makes": [{"kind": "task", "name": "4242 (wor\x1b]0;ker)", "how": "3 threads"}], "clashes": [],
        "notes": ["it has no cap\x1b[0m"]}
OBSTACLE = {"code": "fd.terminal", "object": "fd 0 (/dev/pts/1)", "reason": "is a terminal", "remedy": "redirect it"}


class Daemon:
    """Answers with what a test says, and proves that a daemon may answer so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.replies: dict[str, list[dict[str, Any]] | CrdError] = {
            "GetStatus": [STATUS], "Reload": [{"targets": 3, "waiting": ["archive.level", "api.public"]}],
            "ListTargets": [{"targets": [TARGET]}], "AddTarget": [{"target": TARGET}],
            "RemoveTarget": [{}], "HoldTarget": [{}], "ResumeTarget": [{}],
            "Checkpoint": [{"stage": "memory", "bytes": 4096}, {"image": IMAGE}], "ListImages": [{"images": [IMAGE]}],
            "GetImage": [{"image": IMAGE, "retention": VERDICT, "sharing": SHARING}], "Pin": [{"image": IMAGE}],
            "Sweep": [SWEPT], "Diff": [DIFFERENCE], "Tag": [{"image": IMAGE}], "Note": [{"image": IMAGE}],
            "Forget": [{"verdicts": [VERDICT]}], "Verify": [{"image": IMAGE}],
            "Adopt": [{"images": 2, "adopted": 1, "failed": 0, "crid": 42},
                      {"images": 2, "adopted": 1, "failed": 1, "crid": 43, "message": "it is \x1b damaged"},
                      {"images": 2, "adopted": 1, "failed": 1}],
            "Scrub": [{**SCRUBBED, "checked": 1}, SCRUBBED], "Restart": [{"request": REQUEST}],
            "Attach": [{"pid": 4242, "terminal": "/dev/pts/3"}],
            "GetRequest": [{"request": {**REQUEST, "state": "running"}},
                           {"request": {**REQUEST, "state": "done", "root_pid": 4242}}],
            "ListRequests": [{"requests": [REQUEST]}],
            "CancelRequest": [{"request": {**REQUEST, "state": "cancelled"}}],
            "SaveForShutdown": [{"targets": [{"target": "web", "crid": 42}]}],
            "PlanRestart": [PLAN],
            "Check": [{"pid": 4242, "comm": "worker", "obstacles": [], "notes": ["fd 1 is kept"]}]}

    async def __call__(self, method: str, parameters: dict[str, Any], _peer: Peer,
                       more: Callable[[dict[str, Any]], Awaitable[None]] | None) -> dict[str, Any]:
        self.calls.append((method, {name: value for name, value in parameters.items() if value is not None}))
        replies = self.replies[method]
        if isinstance(replies, CrdError):
            raise replies
        for reply in replies:
            OURS.methods[method].reply.check(reply)
        for reply in replies[:-1] if more else ():
            await more(reply)
        return replies[-1]

    @property
    def parameters(self) -> dict[str, Any]:
        """Of the last call, without those that were left out."""
        return self.calls[-1][1]


class Crctl:
    """Runs crctl in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.status = 0
        self.err = ""

    def __call__(self, *words: str, status: int = 0) -> str:
        """Run it; return what it printed."""
        self.status = status_of(crctl, words)
        out, self.err = self._capsys.readouterr()
        assert self.status == status, (out, self.err)
        return out

    def json(self, *words: str) -> Any:
        """Run it with --json; return the value."""
        return json.loads(self(*words, "--json"))

    def error(self, *words: str, status: int) -> dict[str, Any]:
        """Run it with --json; return the error."""
        assert not self(*words, "--json", status=status)
        error: dict[str, Any] = json.loads(self.err)
        assert error["message"]
        return error


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    home = Path(tempfile.mkdtemp(prefix="crd-cli-"))
    monkeypatch.setenv("CRD_API__SOCKET", str(home / "crd.sock"))
    fake = Daemon(home / "crd.sock")
    with serving(fake.path, fake):
        yield fake
    shutil.rmtree(home)


@pytest.fixture
def crctl_(capsys: pytest.CaptureFixture[str]) -> Crctl:
    return Crctl(capsys)


@pytest.fixture
def missing() -> ImageNotFound:
    return ImageNotFound("there is no image 4711", hint="crctl images lists them.", crid=4711)
