"""redis-server with data and an append-only file, and a client that stays connected."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import eventually
from tests.support.servers import Served
from tests.support.victims import Program

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

SERVER = ("redis-server", "--unixsocket", "redis.sock", "--save", "", "--appendonly", "yes", "--appendfsync", "always",
          "--auto-aof-rewrite-percentage", "0", "--daemonize", "no", "--bind", "127.0.0.1")

WRITER = f"""
served(*{SERVER}, "--port", str(port))
stream, local = connected("127.0.0.1", port), connected("redis.sock")

def ask(sock, *words):
    sock.sendall(b"*%d\\r\\n" % len(words) + b"".join(b"$%d\\r\\n%s\\r\\n" % (len(word), word) for word in words))
    answer = b""
    while not answer.endswith(b"\\r\\n") or (answer[:1] == b"$" and answer.count(b"\\r\\n") < 2):
        answer += sock.recv(65536)
    return answer

for number in range(1, 10**9):
    name, value = b"key:%d" % number, b"%d:" % number + b"x" * 500
    assert ask(stream, b"SET", name, value) == b"+OK\\r\\n"
    assert ask(local, b"GET", name) == b"$%d\\r\\n%s\\r\\n" % (len(value), value)
    assert ask(local, b"DBSIZE") == b":%d\\r\\n" % number, number
    acknowledge(number)
"""


def told(home: Path, *words: str) -> str:
    return subprocess.run(["redis-cli", "-s", home / "redis.sock", *words], capture_output=True, text=True,
                          check=False, timeout=60).stdout.strip()


def test_data_connections_and_the_append_only_file(tmp_path: Path) -> None:
    with Served(tmp_path, WRITER) as redis:
        for number in range(2):
            redis.cycle(f"{number}.image")
        redis.kill_tree()
        acknowledged = max(redis.acknowledged())
        with Program([*SERVER, "--port", "0"], tmp_path, name="again"):
            eventually("the append-only file to be read", lambda: told(tmp_path, "ping") == "PONG")
            names = [f"key:{number}" for number in range(1, acknowledged + 1)]
            values = told(tmp_path, "mget", *names).splitlines()
            assert [value.partition(":")[0] for value in values] == [name.removeprefix("key:") for name in names]
