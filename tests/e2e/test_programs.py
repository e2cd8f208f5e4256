"""Programs as people run them: checkpointed while running, killed, restarted, and found right."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import BIN, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root


@contextmanager
def running(home: Path, *words: str | Path, stdin: Path | None = None) -> Iterator[int]:
    """Run a program without a terminal; whatever has its pid in the end is killed."""
    with (home / "out").open("wb") as out, (stdin or Path(os.devnull)).open("rb") as given:
        process = subprocess.Popen(words, cwd=home, stdin=given, stdout=out, stderr=out, start_new_session=True)
    try:
        yield process.pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            process.wait()
        eventually("the pid to be free", lambda: not Path(f"/proc/{process.pid}").exists())


def checkpoint(home: Path, pid: int, name: str = "image", *options: str) -> Path:
    environment = {**os.environ, "CRD_ENGINE__CRID_FILE": str(home / "crid")}
    done = subprocess.run([BIN / "crd", "checkpoint", str(pid), "-o", home / name, *options], env=environment,
                          capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return home / name


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def restart(image: Path, *options: str) -> None:
    done = subprocess.run([BIN / "crd", "restart", "-i", image, *options], capture_output=True, text=True,
                          check=False, timeout=60)
    assert done.returncode == 0, done.stderr


PYTHON = """
import signal, threading, time

log = open("log", "a", buffering=1)
alarms = 0
def alarmed(*_):
    global alarms
    alarms += 1
signal.signal(signal.SIGALRM, alarmed)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
fired = []
def tick():
    fired.append(time.monotonic())
    timer = threading.Timer(0.05, tick)
    timer.daemon = True
    timer.start()
tick()
queue = __import__("queue").Queue()
def produce():
    for number in __import__("itertools").count():
        queue.put(number)
        time.sleep(0.005)
threading.Thread(target=produce, daemon=True).start()
state = {"text": "ä" * 1000, "numbers": list(range(10000))}
expected = 0
while True:
    number = queue.get()
    assert number == expected, (number, expected)
    assert sum(state["numbers"]) == 49995000 and state["text"] == "ä" * 1000
    expected += 1
    if number % 10 == 0:
        log.write(f"{number} {alarms} {len(fired)}\\n")
"""


def test_cpython_with_threads_an_open_log_and_timers(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def lines() -> list[list[int]]:
        return [[int(word) for word in line.split()] for line in log.read_text().split("\n")[:-1]]

    with running(tmp_path, sys.executable, "-c", PYTHON) as pid:
        eventually("the log", lambda: log.exists() and len(lines()) > 3)
        image = checkpoint(tmp_path, pid)
        kill(pid)
        before = lines()
        restart(image)
        eventually("it to go on", lambda: len(lines()) > len(before) + 5)
        after = lines()[len(before):]
        assert [line[0] for line in after] == list(range(after[0][0], after[0][0] + 10 * len(after), 10))
        assert after[-1][1] > after[0][1], "no SIGALRM since the restart"
        assert after[-1][2] > after[0][2], "no threading.Timer since the restart"
        assert not (tmp_path / "out").read_text()


BASH = """
shopt -s expand_aliases
declare -A seen
trap 'echo caught >> trapped' USR1
i=0
while :; do
    i=$((i + 1)); seen[$i]=x
    [ ${#seen[@]} -eq $i ] || echo "lost at $i" >> wrong
    printf '%d\\n' $i >> numbers
done
"""


def test_bash_running_a_loop_of_builtins(tmp_path: Path) -> None:
    numbers = tmp_path / "numbers"

    def counted() -> list[int]:
        return [int(line) for line in numbers.read_text().split("\n")[:-1]] if numbers.exists() else []

    (tmp_path / "script").write_text(BASH)
    with running(tmp_path, "bash", "script") as pid:
        eventually("it to count", lambda: len(counted()) > 50)
        image = checkpoint(tmp_path, pid)
        kill(pid)
        before = len(counted())
        restart(image)
        eventually("it to count on", lambda: len(counted()) > before + 50)
        os.kill(pid, signal.SIGUSR1)
        eventually("its trap", (tmp_path / "trapped").exists)
        since = counted()[before:]
        assert since == list(range(since[0], since[0] + len(since)))
        assert not (tmp_path / "wrong").exists()


SQL = """
create table t(n integer primary key, text);
insert into t values (0, 'before');
begin immediate;
with recursive c(n) as (select 1 union all select n + 1 from c where n < 10000000)
  insert into t select n, 'row ' || n from c where n % 50 = 0;
update t set text = 'inside' where n = 0;
commit;
select count(*), (select text from t where n = 0) from t;
pragma integrity_check;
"""


def test_sqlite_with_an_open_transaction(tmp_path: Path) -> None:
    (tmp_path / "script").write_text(SQL)
    journal = tmp_path / "db-journal"
    with running(tmp_path, "sqlite3", "db", stdin=tmp_path / "script") as pid:
        eventually("the transaction", journal.exists)
        time.sleep(0.1)
        assert not (tmp_path / "out").read_text(), "the transaction was over too soon"
        image = checkpoint(tmp_path, pid, "image", "--kill")
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
        assert not (tmp_path / "out").read_text()
        restart(image)
        eventually("the commit", lambda: "ok" in (tmp_path / "out").read_text(), seconds=300)  # of a busy processor
        assert (tmp_path / "out").read_text() == "200001|inside\nok\n"


def test_sleep_sleeps_on(tmp_path: Path) -> None:
    seconds, began = 8, time.monotonic()
    with running(tmp_path, "sleep", str(seconds)) as pid:
        time.sleep(0.5)
        image = checkpoint(tmp_path, pid)
        left_seconds = seconds - (time.monotonic() - began)
        kill(pid)
        started = time.monotonic()
        waiting = subprocess.Popen([BIN / "crd", "restart", "-i", image, "--wait"], stdout=subprocess.DEVNULL)
        assert waiting.wait(timeout=60) == 0
        assert time.monotonic() - started > left_seconds > 0
