"""A program that counts into a log, one number a line: what was lost or done twice shows at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.daemon import eventually

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

PROGRAM = """
import os, sys, time
noisy = sys.argv[2:] == ["noisy"]
count, ballast = 0, [os.urandom(4096) if noisy else bytes([i % 251]) * 4096 for i in range(int(sys.argv[1]) * 256)]
with open("count.log", "a", buffering=1) as log:
    while True:
        count += 1
        print(count, file=log)
        time.sleep(0.01)
"""


class CountingProgram:
    """Runs ``PROGRAM`` in ``home`` with its own session and no terminal; always cleaned up by pid."""

    def __init__(self, home: Path, ballast_mib: int = 0, *, noisy: bool = False,
                 command: list[str | Path] | None = None, **options: Any) -> None:
        self.home = home
        self.log = home / "count.log"
        with (home / "program.out").open("wb") as output:
            self.process = subprocess.Popen(command or [sys.executable, "-S", "-c", PROGRAM, str(ballast_mib),
                                                        *(["noisy"] if noisy else [])], cwd=home,
                                            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                            start_new_session=True, **options)
        self.pid = self.process.pid
        (home / "program.pid").write_text(f"{self.pid}\n")
        eventually("the program to count", self.counts)

    def counts(self) -> list[int]:
        """Everything it has counted so far, over all its lives."""
        lines = self.log.read_text().split("\n")[:-1] if self.log.exists() else []
        return [int(line) for line in lines]

    def kill(self) -> None:
        """SIGKILL it and wait until its number is free."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            self.process.wait()
        eventually(f"pid {self.pid} to be free", lambda: not self.is_there())

    def is_there(self) -> bool:
        """Whether its pid is in use."""
        return Path(f"/proc/{self.pid}").exists()

    def status(self) -> dict[str, str]:
        """Its /proc/PID/status."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    def assert_unharmed(self) -> None:
        """It runs, untraced and not stopped but for a checkpoint that may be under way, and counts on."""
        eventually("it to be let go", self._is_free)
        so_far = len(self.counts())
        eventually("it to count on", lambda: len(self.counts()) > so_far)

    def _is_free(self) -> bool:
        status = self.status()
        return status["TracerPid"] == "0" and status["State"][0] in "RSD"

    def assert_counted_without_gap_since(self, line: int) -> None:
        """From the given line of the log on, each number is one more than the one before."""
        counts = self.counts()[line:]
        assert counts == list(range(counts[0], counts[0] + len(counts)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.kill()
