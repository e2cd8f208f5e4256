"""A machine that systemd runs, with crd installed on it: a container whose PID 1 is a real systemd.

Its root is an overlay over ours, so that what is installed here is there too, and all that it writes is gone with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.daemon import PATIENCE_SECONDS, eventually

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

CHECKOUT = Path(__file__).parents[2]
_HIERARCHIES = ("systemd", "unified", "")
_MASKED = ("systemd-udevd.service", "systemd-sysctl.service", "systemd-modules-load.service", "timers.target")
_POWER_OFF = signal.SIGRTMIN + 4
"""systemd(1)."""


class Machine:
    """A booted machine.  A context manager."""

    def __init__(self, home: Path) -> None:
        self.root = home / "root"
        self._upper = home / "upper"
        self._log = home / "console"
        self._name = f"crd-test-{os.getpid()}"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> Self:
        self.root.mkdir()
        self._upper.mkdir()
        _run("mount", "-t", "tmpfs", "tmpfs", str(self._upper))
        for name in ("written", "work"):
            (self._upper / name).mkdir()
        try:
            _run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={self._upper}/written,"
                 f"workdir={self._upper}/work", str(self.root))
            for ours in ("var/lib/crd", "etc/crd"):
                shutil.rmtree(self.root / ours, ignore_errors=True)
            self.make("install")
            for unit in _MASKED:
                (self.root / "etc/systemd/system" / unit).unlink(missing_ok=True)
                (self.root / "etc/systemd/system" / unit).symlink_to("/dev/null")
            self.boot()
        except BaseException:
            self._gone()
            raise
        return self

    def make(self, goal: str) -> None:
        """Have make do something to the machine's files."""
        _run("make", "-C", str(CHECKOUT), goal, f"DESTDIR={self.root}", "PREFIX=/usr")

    def boot(self) -> None:
        """Start the machine, as far as basic.target; again, after it was shut down."""
        with self._log.open("ab") as log:
            self._nspawn = subprocess.Popen(
                ["systemd-nspawn", "--quiet", "--boot", f"--directory={self.root}", "--register=no", "--keep-unit",
                 "--private-network", f"--machine={self._name}", "--capability=all", "--console=read-only",
                 "--link-journal=no", "--", "systemd.unit=basic.target"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=self._enter_cgroup,
                # The container must not have a seccomp filter: no process with one can be checkpointed.
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_SECCOMP": "0"})
        eventually("systemd to run", self._is_running)

    def _enter_cgroup(self) -> None:
        """Be in a cgroup of our own, which becomes the machine's root."""
        for directory in self._cgroups():
            directory.mkdir(exist_ok=True)
            (directory / "cgroup.procs").write_text(str(os.getpid()))

    def _cgroups(self) -> list[Path]:
        mounted = Path("/sys/fs/cgroup")
        return [mounted / name / self._name for name in _HIERARCHIES if (mounted / name / "cgroup.procs").exists()]

    def _is_running(self) -> bool:
        assert self._nspawn
        assert self._nspawn.poll() is None, self._log.read_text(errors="replace")
        if not self._init:
            children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
            self._init = next((int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == "systemd\n"), 0)
            return False
        return self.run("systemctl", "is-system-running").stdout.strip() in {"running", "degraded"}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine, as root."""
        return subprocess.run(
            ["nsenter", "-t", str(self._init), "-m", "-u", "-i", "-n", "-p", "-C", "--", "env", "-i",
             "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", *words],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)

    def say(self, *words: str) -> str:
        """Run a command that must not fail, and return what it said."""
        done = self.run(*words)
        assert done.returncode == 0, f"{' '.join(words)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def show(self, unit: str, what: str) -> str:
        """Return a property of a unit."""
        return self.say("systemctl", "show", "--value", "--property", what, unit)

    def journal(self, *words: str) -> str:
        """Return what the journal has."""
        return self.say("journalctl", "--no-pager", *words)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if kind is not None:
            print(self._log.read_text(errors="replace"))
        self._gone()

    def shut_down(self) -> None:
        """Have systemd stop everything and end."""
        assert self._nspawn
        if self._init:
            with suppress(ProcessLookupError):
                os.kill(self._init, _POWER_OFF)
        try:
            self._nspawn.wait(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()
        for directory in self._cgroups():
            _remove_cgroup(directory)
        self._nspawn, self._init = None, 0

    def _gone(self) -> None:
        if self._nspawn:
            self.shut_down()
        for mounted in (self.root, self._upper):
            subprocess.run(["umount", "--lazy", str(mounted)], check=False, stderr=subprocess.DEVNULL)


def _remove_cgroup(directory: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while directory.exists() and time.monotonic() < deadline:
        for path, _, _ in os.walk(directory, topdown=False):
            with suppress(OSError):
                Path(path).rmdir()


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
