"""A real PostgreSQL server in a directory of its own, on a unix socket."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.support.victims import until

if TYPE_CHECKING:
    from types import TracebackType

BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/nowhere"), key=lambda path: int(path.parent.name))


class PostgresServer:
    """Runs from start to end of the context; may be stopped and started in between.

    It refuses to be root, and root's temporary directories are closed to others: so it has its own.
    """

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="crd-postgres-"))
        self._user = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        os.chown(self.home, self._user.pw_uid, self._user.pw_gid)
        self._run("initdb", "--auth=trust", "--no-sync", "--username=crd", "--pgdata", str(self.home / "data"))
        self.process: subprocess.Popen[bytes] | None = None

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run([BIN / program, *words], **self._as_user(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def _as_user(self) -> dict[str, object]:
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}

    def start(self) -> Self:
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [BIN / "postgres", "-D", self.home / "data", "-k", self.home, "-c", "listen_addresses=",
                 "-c", "max_connections=200"], **self._as_user(), stdout=log, stderr=log, stdin=subprocess.DEVNULL)  # type: ignore[call-overload]
        until("PostgreSQL", lambda: subprocess.run(
            [BIN / "pg_isready", "-h", self.home, "-q"], check=False).returncode == 0)
        return self

    def stop(self, number: int = signal.SIGINT) -> None:
        assert self.process
        self.process.send_signal(number)  # SIGINT: at once, whoever is connected
        self.process.wait(60)

    def database(self, name: str) -> str:
        """Make a database; return its URL."""
        self._run("createdb", "-h", str(self.home), "-U", "crd", name)
        return f"postgresql+asyncpg://crd@/{name}?host={self.home}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stop()
        shutil.rmtree(self.home)
