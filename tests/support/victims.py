"""Processes to checkpoint: the self-checking programs of tests/victims, and plain programs as people run them.

A process may be killed and come back by a restart under the same number, then no child of ours any more: everything
here goes by pid, and whoever leaves the ``with`` block leaves no process behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

VICTIMS = Path(__file__).parent.parent / "victims"
PATIENCE_SECONDS = 60.0

NAMES = ("counter", "blocked", "vector", "fpu", "memory", "signals", "timers", "files", "pipes", "credentials",
         "robust", "stopped", "rwhog", "idle", "events", "faults",
         "epolls", "watches", "netlinks", "multicasts", "unnamed", "named", "fifos", "locks", "unixes",
         "inets", "terminals", "connections", "confined", "segments", "queues", "mqueues", "machine",
         "emulator")
"""The programs of tests/victims that need no other process."""
DYNAMIC = {"credentials", "robust", "confined", "netlinks", "emulator"}
"""Those that do not exist as NAME-musl, statically linked, too."""


def until(what: str, condition: Callable[[], bool], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for a condition by asking for it."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"no {what} within {seconds:.0f} s")
        time.sleep(0.002)


@cache
def build() -> None:
    """Make the victims, once a session."""
    made = subprocess.run(["make", "--no-print-directory", "-C", VICTIMS], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


class Program:
    """Any program, started in a session of its own without a terminal, its output in files of ``directory``."""

    def __init__(self, argv: Sequence[str | Path], directory: Path, *, name: str = "program") -> None:
        self.directory = directory.resolve()
        self.prefix = directory / name
        with self.file("stdout").open("wb") as stdout, self.file("stderr").open("wb") as stderr:
            self._child = subprocess.Popen([str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=stdout,
                                           stderr=stderr, close_fds=True, start_new_session=True, cwd=directory)
        self.pid = self._child.pid
        self._mine = {self.pid}

    def file(self, suffix: str) -> Path:
        """Return the path of PREFIX.suffix."""
        return self.prefix.with_name(f"{self.prefix.name}.{suffix}")

    def restarted_as(self, pid: int) -> None:
        """Go on with another number; it is killed at the end like the first."""
        self.pid = pid
        self._mine.add(pid)

    def status(self) -> dict[str, str]:
        """Return /proc/PID/status; empty when there is no such process."""
        try:
            text = Path(f"/proc/{self.pid}/status").read_text(errors="surrogateescape")
        except (FileNotFoundError, ProcessLookupError):
            return {}
        return {key: value.strip() for key, _, value in (line.partition(":") for line in text.split("\n"))}

    def tasks(self) -> list[int]:
        """Return its tids."""
        return sorted(int(name) for name in os.listdir(f"/proc/{self.pid}/task"))

    def is_there(self) -> bool:
        """Whether the number is in use, be it by a zombie."""
        return bool(self.status())

    def is_running(self) -> bool:
        """Whether it is there and neither dead nor stopped."""
        return self.status().get("State", "X")[0] in "RSD"

    def assert_untraced(self) -> None:
        """No thread of it is traced."""
        for tid in self.tasks():
            with suppress(FileNotFoundError, ProcessLookupError):
                text = Path(f"/proc/{self.pid}/task/{tid}/status").read_text(errors="surrogateescape")
                assert "\nTracerPid:\t0\n" in text, f"thread {tid} is traced"
                assert "\nState:\tt" not in text, f"thread {tid} is in a tracing stop"

    def assert_unharmed(self) -> None:
        """It runs, and nobody traces it."""
        assert self.is_running(), f"{self.prefix.name} is {self.status().get('State', 'gone')}: {self.stderr()}"
        self.assert_untraced()

    def stderr(self) -> str:
        """Return what it wrote to its standard error."""
        return self.file("stderr").read_text(errors="replace")

    def wait_gone(self) -> None:
        """Wait until its number is free: reaped by us if it is our child, else by whoever is its parent now."""
        with suppress(ChildProcessError):
            until(f"end of {self.pid}", lambda: self._reaped(self.pid))
        until(f"end of {self.pid}", lambda: not self.is_there())

    @staticmethod
    def _reaped(pid: int) -> bool:
        return os.waitpid(pid, os.WNOHANG)[0] == pid

    def kill(self) -> None:
        """SIGKILL, and wait until the number is free; harmless if the number is a stranger's by now."""
        if not self._is_a_stranger(self.pid):
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait_gone()

    def _is_a_stranger(self, pid: int) -> bool:
        try:
            return not Path(f"/proc/{pid}/cwd").readlink().is_relative_to(self.directory)
        except OSError:  # a zombie, or nobody
            return False

    def family(self) -> list[int]:
        """Return its pid and those of its descendants, zombies included."""
        found = [self.pid]
        for pid in found:
            with suppress(FileNotFoundError, ProcessLookupError):
                for tid in os.listdir(f"/proc/{pid}/task"):
                    found += map(int, Path(f"/proc/{pid}/task/{tid}/children").read_text().split())
        return found

    def kill_tree(self) -> None:
        """SIGKILL to all of the family, and wait until their numbers are free; none sees another end, and says so."""
        family = self.family()
        for number, pids in ((signal.SIGSTOP, family), (signal.SIGKILL, family[::-1])):
            for pid in pids:  # the other way round a child that is stopped would be told to go on (SIGHUP, SIGCONT)
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        self.wait_gone()
        until(f"end of {family}", lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))

    def close(self) -> None:
        """Kill what is left of it, and what it left behind in its session or its directory."""
        for pid in self._mine:
            self.pid = pid
            self.kill()
        self._child.poll()
        for _ in range(2):  # a server may start another worker before it is killed itself
            for pid in {*self._session(), *self._in_directory()}:
                if not self._is_a_stranger(pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def _in_directory(self) -> list[int]:
        """Return the processes that work in its directory."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (entry / "cwd").readlink().is_relative_to(self.directory) and int(entry.name) != os.getpid():
                    found.append(int(entry.name))
        return found

    def _session(self) -> list[int]:
        """Return the members of the session it was started in."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                session = (entry / "stat").read_bytes().rpartition(b")")[2].split()[3]
                if int(session) == self._child.pid and int(entry.name) != self._child.pid:
                    found.append(int(entry.name))
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


class Victim(Program):
    """A program of tests/victims, ready when the constructor returns."""

    def __init__(self, name: str, directory: Path, *arguments: object) -> None:
        build()
        prefix = directory / name
        super().__init__([VICTIMS / "bin" / name, prefix, *map(str, arguments)], directory, name=name)
        self.arguments = arguments
        try:
            self.wait_ready()
        except BaseException:
            self.close()
            raise

    def wait_ready(self) -> None:
        """Wait until it says so."""
        def ready() -> bool:
            assert self._child.poll() is None, f"{self.prefix.name} ended: {self.stderr()}"
            return self.file("ready").exists()
        until("readiness", ready)

    def verify(self) -> None:
        """Have it verify itself: it must say PASS and end."""
        self.file("result").unlink(missing_ok=True)
        self.file("verify").touch()
        until(f"verdict of {self.prefix.name}", lambda: self.file("result").exists() or not self.is_running())
        verdict = self.file("result").read_text() if self.file("result").exists() else "died without a verdict"
        self.file("verify").unlink()
        assert verdict == "PASS\n", f"{self.prefix.name}: {verdict} {self.stderr()}"
        self.wait_gone()


def bash_loop(directory: Path) -> Program:
    """Return a bash that counts with builtins alone and writes each hundredth number to count.txt."""
    script = "n=0; while :; do n=$((n+1)); ((n % 100)) || echo $n >>count.txt; done"
    return Program(["/bin/bash", "-c", script], directory, name="bash")


def python_script(directory: Path, source: str) -> Program:
    """Return a python3 that runs ``source``."""
    script = directory / "script.py"
    script.write_text(source)
    return Program([sys.executable, script], directory, name="python")


def sqlite_transaction(directory: Path, rows: int = 3_000_000) -> Program:
    """Return an sqlite3 in one long transaction that inserts ``rows`` rows into data.db and prints their sum."""
    script = directory / "script.sql"
    script.write_text(f"""
        CREATE TABLE numbers(n INTEGER PRIMARY KEY, text TEXT);
        BEGIN;
        WITH RECURSIVE count(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM count WHERE n < {rows})
            INSERT INTO numbers SELECT n, printf('row %d', n) FROM count;
        COMMIT;
        SELECT count(*), sum(n) FROM numbers;
    """)
    return Program(["sqlite3", "-init", script, "-batch", "data.db", ".quit"], directory, name="sqlite")


def sleep(directory: Path, seconds: float) -> Program:
    """Return /bin/sleep."""
    return Program(["/bin/sleep", str(seconds)], directory, name="sleep")
