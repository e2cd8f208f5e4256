"""Two images of a real program told apart, as their users see it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.daemon import RunningDaemon
from tests.support.victims import python_script, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

CHANGES = """
import mmap, os, signal, sys, threading, time

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
file = open("kept", "w+")
file.truncate(200 * 4096)
kept = mmap.mmap(file.fileno(), 200 * 4096, mmap.MAP_PRIVATE)
shared = mmap.mmap(-1, 100 * 4096, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
for page in range(100):
    kept[page * 4096] = shared[page * 4096] = 1 + page
log, gone = open("log", "w"), open("gone", "w")
goes = os.fork()
if not goes:
    while True:
        signal.pause()
print("ready", flush=True)
signal.sigwait([signal.SIGUSR1])
for page in range(90, 103):
    kept[page * 4096] = 200
for page in range(7):
    shared[page * 4096] = 200
log.write("x" * 1000)
log.flush()
gone.close()
os.kill(goes, 9)
os.waitpid(goes, 0)
child = os.fork()
if not child:
    while True:
        signal.pause()
threading.Thread(target=lambda: time.sleep(9999), daemon=True).start()
print(goes, child, flush=True)
while True:
    signal.pause()
"""


def mapping(found: dict[str, Any], pid: int, flags: str) -> tuple[int, int, int]:
    """Return how the pages differ of the mapping of the file or of the shared memory."""
    [change] = [change for change in found["memory"] if change["pid"] == pid and (there := change["after"])
                and there["flags"] == flags and (flags == "rw-s" or there["path"].endswith("/kept"))]
    return change["changed_pages"], change["added_pages"], change["removed_pages"]


def test_what_a_program_has_done_between_two_images(daemon: RunningDaemon, tmp_path: Path) -> None:
    with python_script(tmp_path, CHANGES) as program:
        output = program.file("stdout")
        until("it to be ready", lambda: "ready" in output.read_text())
        pid = program.pid
        before = daemon.crctl("checkpoint", "--pid", str(pid))["crid"]
        os.kill(pid, signal.SIGUSR1)
        until("it to have changed", lambda: len(output.read_text().split()) == 3)
        goes, child = map(int, output.read_text().split()[1:])
        after = daemon.crctl("checkpoint", "--pid", str(pid))["crid"]

        found = daemon.crctl("diff", str(before), str(after))
        assert (found["before"]["crid"], found["after"]["crid"]) == (before, after)
        tasks = {change["pid"]: change for change in found["tasks"]}
        assert tasks.keys() == {pid, goes, child}
        assert tasks[pid]["threads_new"] == 1
        assert not tasks[goes].get("after")
        assert not tasks[child].get("before")
        assert mapping(found, pid, "rw-p") == (10, 3, 0)
        assert mapping(found, pid, "rw-s") == (7, 0, 0)
        log, gone = (next(change for change in found["files"] if change["pid"] == pid and name in str(change))
                     for name in ("/log'", "/gone'"))
        assert (log["before"]["position"], log["after"]["position"]) == (0, 1000)
        assert not gone.get("after")

        back = daemon.crctl("diff", str(after), str(before))
        assert mapping(back, pid, "rw-p") == (10, 0, 3)
        assert back["total"]["added_pages"] == found["total"]["removed_pages"]
        assert back["total"]["equal_pages"] == found["total"]["equal_pages"]

        daemon.crctl("export", str(after), "-o", str(tmp_path / "after.image"))
        imported = daemon.crctl("import", str(tmp_path / "after.image"))["crid"]
        assert daemon.crctl("diff", str(before), str(imported))["total"] == found["total"], "though by other hashes"
        assert daemon.crctl("diff", str(after), str(imported))["total"] == {
            **dict.fromkeys(found["total"], 0), "equal_pages": sum(
                found["total"][name] for name in ("equal_pages", "changed_pages", "added_pages"))}
        few = daemon.crctl("diff", str(before), str(after), "--limit", "1")
        assert [len(few[name]) for name in ("tasks", "memory", "files")] == [1, 1, 1]
        assert few["total"] == found["total"]
        os.kill(child, 9)
