"""nginx with its workers: a keep-alive connection within the tree, and clients outside of it."""

from __future__ import annotations

import http.client
import json
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import eventually
from tests.support.served import Served, obstacles, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

SERVER = """
import http.client
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
home = pathlib.Path.cwd()
(home / "port").write_text(str(port))
(home / "html").mkdir()
(home / "html" / "file").write_text("text" * 1000)
(home / "nginx.conf").write_text(f\"\"\"
daemon off; user root; worker_processes 2; pid {home}/nginx.pid; events {{ worker_connections 64; }}
http {{
    access_log {home}/access.log; root {home}/html; keepalive_requests 1000000;
    client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
    scgi_temp_path {home}/scgi; uwsgi_temp_path {home}/uwsgi;
    server {{ listen 127.0.0.1:{port}; listen unix:{home}/nginx.sock; location /pid {{ return 200 $pid; }} }}
}}
\"\"\")
served("nginx", "-p", home, "-c", home / "nginx.conf", "-e", home / "error.log")
"""

READER = SERVER + """
over_tcp, over_unix = http.client.HTTPConnection("127.0.0.1", port), http.client.HTTPConnection("localhost")
over_tcp.sock, over_unix.sock = connected("127.0.0.1", port), connected("nginx.sock")
workers = {}
for number in range(1, 10**9):
    for connection in (over_tcp, over_unix):
        for path in ("/file", "/pid"):
            connection.request("GET", f"{path}?{number}")
            answer = connection.getresponse().read()
            assert answer == b"text" * 1000 if path == "/file" else workers.setdefault(connection, answer) == answer
    acknowledge(number)
"""

ALONE = SERVER + """
connected("127.0.0.1", port).close()
for number in range(1, 10**9):
    acknowledge(number)
    time.sleep(0.05)
"""


def test_keep_alive_connections(tmp_path: Path) -> None:
    with Served(tmp_path, READER) as nginx:
        for number in range(2):
            nginx.cycle(f"{number}.image")
        requests = (tmp_path / "access.log").read_text().splitlines()
        assert all(line.split('"')[2].split()[0] == "200" for line in requests)
        assert (tmp_path / "error.log").read_text() == ""


def get(port: int) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/file", headers={"Connection": "close"})
        return connection.getresponse().read()
    finally:
        connection.close()


def test_a_client_outside(tmp_path: Path) -> None:
    with Served(tmp_path, ALONE) as nginx:
        port = int((tmp_path / "port").read_text())
        with socket.create_connection(("127.0.0.1", port)) as kept:
            kept.sendall(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
            assert kept.recv(15) == b"HTTP/1.1 200 OK"
            found = obstacles(nginx)
            assert [*found] == ["fd.tcp"]
            assert "TCP connection to a process outside" in found["fd.tcp"]
            refused = run(nginx, "checkpoint", str(nginx.pid), "-o", tmp_path / "refused", "--json")
            assert refused.returncode == 13
            assert [reason["code"] for reason in json.loads(refused.stderr)["reasons"]] == ["fd.tcp"]
            assert not (tmp_path / "refused").exists()
            nginx.goes_on()
        eventually("the connection to be gone", lambda: not obstacles(nginx))
        nginx.cycle()
        assert get(port) == b"text" * 1000
