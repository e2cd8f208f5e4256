"""A real daemon in a directory of its own, and the client to talk to it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crd.cli.main import crctl
from crd.console.program import status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

BIN = Path(sys.executable).parent
PATIENCE_SECONDS = 60.0
UNWELL = 3
"""How ``crctl status`` ends when something is wrong."""


def eventually(what: str, ask: Callable[[], Any], *, seconds: float = PATIENCE_SECONDS) -> Any:
    """Ask until the answer is true, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        if answer := ask():
            return answer
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """The children of a process, none if it has ended."""
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


class Refused(Exception):  # noqa: N818  it states the fact
    """crctl failed; the error is what it printed as JSON."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(f"exit {status}: {error}")
        self.status = status
        self.error = error


class RunningDaemon:
    """``crd run`` with its state under ``home``; can be killed and started again."""

    def __init__(self, home: Path, config: str = "", through: tuple[str, ...] = ()) -> None:
        """Have it run by ``through``: a command that executes the one that follows."""
        self.home = home
        self._through = through
        self.state = home / "state"
        self.socket = home / "crd.sock"
        self.config = home / "crd.toml"
        self.config.write_text(config)
        self.environment = {
            **os.environ,
            "CRD_DAEMON__STATE_DIR": str(self.state),
            "CRD_API__SOCKET": str(self.socket),
            "CRD_METRICS__LISTEN": "127.0.0.1:0",
            "CRD_ENGINE__CRID_FILE": str(home / "crid"),
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What the daemon wrote to stderr, over all its lives."""
        path = self.home / "daemon.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> Self:
        """Start it and wait until it answers."""
        with (self.home / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen([*self._through, BIN / "crd", "run", "--config", self.config],
                                            env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        eventually("the daemon to answer", self._answers)
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended:\n{self.log}"
        with suppress(Refused):
            return bool(self.crctl("status"))
        return False

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """Stop it (or kill it), and return its exit status once the workers that it leaves behind have ended."""
        assert self.process is not None
        self.process.send_signal(signal_number)
        status = self.process.wait(timeout=PATIENCE_SECONDS)
        eventually("the workers to end", lambda: not any(map(self._is_worker, Path("/proc").glob("[0-9]*"))))
        return status

    def _is_worker(self, process: Path) -> bool:
        with suppress(OSError):  # it has ended
            return (b"crd.engine.nursery" in (process / "cmdline").read_bytes()
                    and f"CRD_DAEMON__STATE_DIR={self.state}\0".encode() in (process / "environ").read_bytes())
        return False

    def nursery(self) -> int:
        """The process that forks workers."""
        assert self.process is not None
        for child in children(self.process.pid):
            with suppress(OSError):
                if b"crd.engine.nursery" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return child
        raise AssertionError(f"the daemon has no nursery:\n{self.log}")

    @contextmanager
    def without_workers(self) -> Iterator[None]:
        """Let nothing that needs a worker go on meanwhile."""
        nursery = self.nursery()
        os.kill(nursery, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(nursery, signal.SIGCONT)

    def run_crctl(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run crctl and return how it ended."""
        return subprocess.run([BIN / "crctl", *words], env=self.environment, capture_output=True, text=True,
                              check=False, timeout=PATIENCE_SECONDS, **options)

    def crctl(self, *words: str) -> Any:
        """Do what crctl --json does and return its value; raises Refused with the error it printed instead.

        It is done in this process: to start a program takes far longer than to ask, and many ask again and again.
        """
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = status_of(crctl, [f"--socket={self.socket}", *words, "--json"])
        if status and not out.getvalue():
            raise Refused(status, json.loads(err.getvalue()))
        return json.loads(out.getvalue())

    def metrics(self) -> dict[str, float]:
        """Scrape once: series as written in the text format, with their values."""
        address = self.crctl("status")["metrics"]
        url = address if address.startswith("http") else f"http://{address}/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
            lines = answer.read().decode().splitlines()
        return {series: float(value) for series, _, value in
                (line.rpartition(" ") for line in lines if not line.startswith("#"))}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop(signal.SIGKILL)
        if kind is not None:
            print(self.log)
