"""The victims themselves: they pass when nobody touches them, and notice it when somebody does."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from crd.native.memory import Memory
from crd.target import procfs
from crd.target.tree import has_ended
from tests.support import victims
from tests.support.gaps import mark
from tests.support.victims import DYNAMIC, NAMES, Victim, until

if TYPE_CHECKING:
    from pathlib import Path

STATIC = [f"{name}-musl" for name in NAMES if name not in DYNAMIC]


def awake(victim: Victim) -> Victim:
    """Send it on its way if it stopped itself."""
    if victim.prefix.name.startswith("stopped"):
        until("stop", lambda: victim.status()["State"][0] == "T")
        os.kill(victim.pid, signal.SIGCONT)
    return victim


@pytest.mark.root
@pytest.mark.parametrize("name", [*NAMES, *STATIC])
def test_it_passes_untouched(tmp_path: Path, name: str) -> None:
    with Victim(name, tmp_path) as victim:
        awake(victim).assert_unharmed()
        victim.verify()
        assert not victim.is_there()


def stop_and_continue(victim: Victim) -> None:
    os.kill(victim.pid, signal.SIGSTOP)
    until("stop", lambda: victim.status()["State"][0] == "T")
    os.kill(victim.pid, signal.SIGCONT)


@pytest.mark.parametrize("name", ["counter", "memory", "pipes", "signals", "timers"])
def test_it_can_be_stopped_and_continued(tmp_path: Path, name: str) -> None:
    with Victim(name, tmp_path) as victim:
        stop_and_continue(victim)
        victim.verify()


def test_blocked_notices_a_call_that_was_not_restarted(tmp_path: Path) -> None:
    """SIGSTOP and SIGCONT end some of the calls with EINTR (signal(7)); a checkpoint must not."""
    with Victim("blocked", tmp_path) as victim:
        stop_and_continue(victim)
        with pytest.raises(AssertionError, match=r"FAIL: [a-z-]+: did not "):
            victim.verify()


def overwrite(victim: Victim, path_end: str, offset: int) -> None:
    """Change one byte of what it has mapped under a name."""
    entry = next(entry for entry in procfs.maps(victim.pid) if entry.path.endswith(path_end))
    with Memory(victim.pid) as memory:
        byte = memory.read(entry.start + offset, 1)
        memory.write(entry.start + offset, bytes([byte[0] ^ 0xff]))


@pytest.mark.parametrize(("path_end", "said"), [
    ("memory.private", "private page"), ("/dev/zero (deleted)", "shared memory"), ("[heap]", "heap")])
def test_memory_notices_one_byte(tmp_path: Path, path_end: str, said: str) -> None:
    with Victim("memory", tmp_path) as victim:
        overwrite(victim, path_end, 64)
        with pytest.raises(AssertionError, match=said):
            victim.verify()


def test_counter_notices_a_lost_line(tmp_path: Path) -> None:
    with Victim("counter", tmp_path) as victim:
        progress = victim.file("progress")
        with progress.open("r+") as file:
            file.write("00000007")
        with pytest.raises(AssertionError, match="line 1 of the progress file"):
            victim.verify()


def test_credentials_notices_another_limit(tmp_path: Path) -> None:
    with Victim("credentials", tmp_path) as victim:
        os.setpriority(os.PRIO_PROCESS, victim.pid, 6)
        with pytest.raises(AssertionError, match='was "nice: 5", is "nice: 6"'):
            victim.verify()


def test_a_victim_that_dies_says_so(tmp_path: Path) -> None:
    with Victim("idle", tmp_path) as victim:
        os.kill(victim.pid, signal.SIGSEGV)
        with pytest.raises(AssertionError, match="died without a verdict"):
            victim.verify()


def test_the_hog_measures_its_gap(tmp_path: Path) -> None:
    with Victim("rwhog", tmp_path, 4) as victim:
        def longest_gap() -> int:
            return mark(victim).longest_gap_ns
        longest_gap()
        os.kill(victim.pid, signal.SIGSTOP)
        until("stop", lambda: victim.status()["State"][0] == "T")
        stopped = time.monotonic()
        until("a while", lambda: time.monotonic() - stopped > 0.1)
        os.kill(victim.pid, signal.SIGCONT)
        assert 0.1 < longest_gap() / 1e9 < 10
        victim.verify()


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    source = "import subprocess, time; subprocess.Popen(['/bin/sleep', '1000']); open('ready', 'w'); time.sleep(1000)"
    with victims.python_script(tmp_path, source) as program:
        until("its child", (tmp_path / "ready").exists)
        child, = procfs.children(program.pid)
    until("end of the child", lambda: has_ended(child))
    assert not program.is_there()


def test_plain_programs(tmp_path: Path) -> None:
    with victims.bash_loop(tmp_path) as bash, victims.sqlite_transaction(tmp_path, 2000) as sqlite:
        until("numbers", lambda: (tmp_path / "count.txt").exists() and (tmp_path / "count.txt").stat().st_size > 0)
        bash.assert_unharmed()
        until("the sum", lambda: sqlite.file("stdout").read_text() == f"2000|{2000 * 2001 // 2}\n")
