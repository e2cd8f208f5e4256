"""PostgreSQL with its processes and shared memory, and psql on a unix socket in the midst of a transaction."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import eventually
from tests.support.servers import Served, checkpoint, run

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/nowhere"))
OF_NOBODY_BUT_IT = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]

CLIENT = f"""
server = served(*{OF_NOBODY_BUT_IT}, "{BIN}/postgres", "-D", sys.argv[1], "-k", sys.argv[1], "-c", "listen_addresses=",
                "-c", "autovacuum_naptime=1", "-c", "max_parallel_workers=2")
eventually(lambda: subprocess.run(["{BIN}/pg_isready", "-q", "-h", sys.argv[1]]).returncode == 0)
psql = subprocess.Popen(["{BIN}/psql", "-h", sys.argv[1], "-U", "postgres", "-qAtX", "-v", "ON_ERROR_STOP=1"],
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

def ask(command):
    psql.stdin.write(command + "; select 'over';\\n")
    answer = []
    while (line := psql.stdout.readline().strip()) != "over":
        assert line, (command, answer)
        answer.append(line)
    return answer

ask("create table if not exists numbers(n bigint primary key, text text)")
for number in range(1, 10**9):
    if number % 20 == 1:
        ask("begin")
        ask("create temporary table scratch(n bigint) on commit drop")
    ask(f"insert into numbers values ({{number}}, repeat('x', 500)); insert into scratch values ({{number}})")
    kept, = ask("select count(*), max(n), (select count(*) from scratch) from numbers")
    assert kept == f"{{number}}|{{number}}|{{(number - 1) % 20 + 1}}", kept
    if number % 20 == 0:
        ask("commit")
    acknowledge(number)
"""


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A cluster's directory that its user can reach."""
    home = Path(subprocess.run([*OF_NOBODY_BUT_IT, "mktemp", "-d"], check=True, capture_output=True, text=True,
                               cwd="/").stdout.strip())
    try:
        subprocess.run([*OF_NOBODY_BUT_IT, BIN / "initdb", "-D", home, "-A", "trust", "-N"], check=True,
                       capture_output=True, cwd="/")
        yield home
    finally:
        with suppress(FileNotFoundError, ProcessLookupError):  # a Program kills only at home
            os.kill(int((home / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
        shutil.rmtree(home, ignore_errors=True)


def test_an_open_transaction(tmp_path: Path, data: Path) -> None:
    with Served(tmp_path, CLIENT, str(data)) as client:
        image = client.saved_and_killed()
        told = max(client.acknowledged())
        client.brought_back(image)
        client.kill_tree()
        committed = max(client.acknowledged()) // 20 * 20
        assert committed >= told // 20 * 20
        with subprocess.Popen([*OF_NOBODY_BUT_IT, BIN / "postgres", "-D", data, "-k", data, "-c", "listen_addresses="],
                              cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as again:
            try:
                found = eventually("it to have recovered", lambda: numbers_in(data))
                assert found in {f"{n}|{n}" for n in (committed, committed + 20)}
            finally:
                again.send_signal(signal.SIGQUIT)


def test_left_running_it_goes_on_and_leaves_the_image_behind(tmp_path: Path, data: Path) -> None:
    """Its files are then not what the image knew: a restart that insists on that is refused, and changes nothing."""
    with Served(tmp_path, CLIENT, str(data)) as client:
        image = checkpoint(client)
        client.goes_on(25)  # through a commit
        client.kill_tree()
        done = run(client, "restart", "-i", image, "--files", "fail")
        assert done.returncode == 14
        assert "has changed since the image was taken" in done.stderr
        assert not client.is_there()


def numbers_in(data: Path) -> str:
    return subprocess.run([BIN / "psql", "-h", data, "-U", "postgres", "-qAtX", "-c",
                           "select count(*), max(n) from numbers"], capture_output=True, text=True,
                          check=False).stdout.strip()
