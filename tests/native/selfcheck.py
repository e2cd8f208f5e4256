"""A target that watches itself (``victims/selfcheck.c``), and what it reports."""

from __future__ import annotations

import mmap
import struct
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

WORDS = ("ready", "end", "rounds", "blocked_calls", "signals", "wrong_registers", "wrong_flags", "wrong_red_zone",
         "wrong_vectors", "wrong_memory", "wrong_mask", "wrong_children", "wrong_results", "early_returns")
PATIENCE_SECONDS = 60


class SelfCheck:
    """The running target.  A context manager."""

    def __init__(self, program: Path, directory: Path, mode: str) -> None:
        path = directory / "report"
        path.write_bytes(bytes(mmap.PAGESIZE))
        with path.open("r+b") as file:
            self._report = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self._process = subprocess.Popen([program, path, mode])
        self.pid = self._process.pid
        self.await_word("ready", 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()

    def report(self) -> dict[str, int]:
        return dict(zip(WORDS, struct.unpack_from(f"<{len(WORDS)}Q", self._report), strict=True))

    def errors(self) -> dict[str, int]:
        return {word: count for word, count in self.report().items() if count and word.startswith(("wrong", "early"))}

    def await_word(self, word: str, value: int) -> None:
        """Wait until a counter has reached a value."""
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while self.report()[word] < value:
            assert self._process.poll() is None, f"the target ended: {self._process.returncode}"
            assert time.monotonic() < give_up_at, f"{word} stays at {self.report()}"
            time.sleep(0.001)

    def goes_on(self) -> None:
        """Wait until it has done more of everything."""
        before = self.report()
        self.await_word("rounds", before["rounds"] + 40)
        if before["blocked_calls"]:
            self.await_word("blocked_calls", before["blocked_calls"] + 40)

    def tracers(self) -> set[str]:
        """Return who traces its threads."""
        return {line for task in Path(f"/proc/{self.pid}/task").iterdir()
                for line in (task / "status").read_text().splitlines() if line.startswith("TracerPid:")}

    def maps(self) -> str:
        return Path(f"/proc/{self.pid}/maps").read_text()

    def end(self) -> int:
        """Have it look for children a last time and exit; return its status."""
        self._report[8] = 1
        return self._process.wait(PATIENCE_SECONDS)
