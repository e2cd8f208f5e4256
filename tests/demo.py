"""``make demo``: crd's main job on a real process, in half a minute.

Starts the daemon with nothing but defaults, a workload that counts, lets the schedule take images of it, kills it with
SIGKILL, restarts it from its newest image through the queue, and shows that it counts on from where the image was
taken.  Exit status 0 only if all of that held.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

BIN = Path(sys.executable).parent
IMAGES = 3
PATIENCE_SECONDS = 60

WORKLOAD = """
import time
count = 0
with open("count.log", "a", buffering=1) as log:
    while True:
        count += 1
        print(count, time.time(), file=log)
        time.sleep(0.05)
"""

CONFIG = """
[targets.counter]
pidfile = "{home}/counter.pid"
every = "2s"
"""


def say(text: str) -> None:
    """Print what is being done."""
    print(f"\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"== {text}", flush=True)


def fail(text: str) -> NoReturn:
    """Say what did not hold, and end."""
    sys.exit(f"demo: FAILED: {text}")


def wait_for(what: str, ask: Callable[[], T]) -> T:
    """Ask until the answer is true."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if answer := ask():
            return answer
        time.sleep(0.1)
    fail(f"waited {PATIENCE_SECONDS} s for {what}")


class Demo:
    """One run, in a directory of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.log = home / "count.log"
        self.environment = {
            **os.environ,
            "CRD_DAEMON__STATE_DIR": str(home / "state"),
            "CRD_API__SOCKET": str(home / "crd.sock"),
            "CRD_METRICS__LISTEN": "127.0.0.1:0",
        }
        self.started: list[int] = []

    def crctl(self, *words: str, show: bool = False) -> Any:
        """Run crctl; return its JSON, or show what a person sees."""
        if show:
            print("$ crctl", *words, flush=True)
            subprocess.run([BIN / "crctl", *words], env=self.environment, check=True)
            return None
        done = subprocess.run([BIN / "crctl", *words, "--json"], env=self.environment, capture_output=True,
                              text=True, check=False)
        if done.returncode:
            fail(f"crctl {' '.join(words)}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def start_daemon(self) -> subprocess.Popen[bytes]:
        """Start ``crd run`` and wait until it answers."""
        (self.home / "crd.toml").write_text(CONFIG.format(home=self.home))
        daemon = subprocess.Popen([BIN / "crd", "run", "--config", self.home / "crd.toml"], env=self.environment,
                                  stdout=subprocess.DEVNULL, stderr=(self.home / "daemon.log").open("wb"))
        wait_for("the daemon's socket", lambda: (self.home / "crd.sock").exists() or daemon.poll() is not None)
        if daemon.poll() is not None:
            fail(f"the daemon ended at once:\n{(self.home / 'daemon.log').read_text()}")
        return daemon

    def start_workload(self) -> subprocess.Popen[bytes]:
        """Start the program that counts, as a service would be: no terminal, its own session."""
        with (self.home / "workload.out").open("wb") as output:
            workload = subprocess.Popen(["/usr/bin/env", "python3", "-c", WORKLOAD], cwd=self.home,
                                        stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
        self.started.append(workload.pid)
        (self.home / "counter.pid").write_text(f"{workload.pid}\n")
        return workload

    def counts(self) -> list[tuple[int, float]]:
        """Read what the workload has written: each count and the time of it."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(int(count), float(at)) for count, at in (line.split() for line in lines)]

    def run(self) -> None:
        """Tell the story."""
        say("start the daemon: userspace engine, SQLite catalog, local archive")
        daemon = self.start_daemon()
        try:
            say("start a workload that counts (python3), and let the schedule take images of it, one every 2 s")
            workload = self.start_workload()
            wait_for(f"{IMAGES} images", lambda: len(self.crctl("images", "counter")) >= IMAGES)
            self.crctl("images", show=True)

            say(f"kill the workload, pid {workload.pid}, with SIGKILL")
            workload.send_signal(signal.SIGKILL)
            workload.wait()
            before = self.counts()
            print(f"it had counted to {before[-1][0]}")

            image = self.crctl("show", "counter@latest")
            taken_at = datetime.fromisoformat(image["taken_at"]).timestamp()
            at_image = max(count for count, at in before if at <= taken_at)
            say(f"restart it from its newest image, crid {image['crid']}, taken when it had counted to {at_image}")
            self.crctl("restart", str(image["crid"]), "--wait", show=True)
            wait_for("the workload to count on", lambda: len(self.counts()) > len(before) + 20)
            self.check(before, at_image, workload.pid)
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait()
            for pid in self.started:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def check(self, before: list[tuple[int, float]], at_image: int, pid: int) -> None:
        """Hold what was seen against what was promised."""
        after = [count for count, _ in self.counts()[len(before):]]
        print(f"before the kill:   ... {' '.join(str(count) for count, _ in before[-4:])}")
        print(f"after the restart: {' '.join(str(count) for count in after[:8])} ...")
        if not at_image < after[0] <= at_image + 2:
            fail(f"it counted on from {after[0]}, but the image was taken at {at_image}")
        if after != list(range(after[0], after[0] + len(after))):
            fail("it did not count without a gap")
        if not Path(f"/proc/{pid}").exists():
            fail(f"pid {pid} does not run")
        say(f"it counts on from {after[0]}, where the image was taken, as pid {pid}: it never knew")


def main() -> None:
    """Run the demo in a temporary directory that is removed again."""
    with tempfile.TemporaryDirectory(prefix="crd-demo-") as home:
        Demo(Path(home)).run()
    say("the demo held")


if __name__ == "__main__":
    main()
