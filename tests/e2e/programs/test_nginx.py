"""nginx with its workers: a keep-alive connection within the tree, and clients outside of it."""

from __future__ import annotations

import http.client
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import eventually
from tests.support.servers import Served, checkpoint, restart, run

if TYPE_CHECKING:
    from typing import Self

pytestmark = pytest.mark.root

SERVER = """
import http.client
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


class Browser(threading.Thread):
    """A client outside that asks again and again on one connection, and connects again when it is lost."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._over = threading.Event()
        self.answers = self.lost = 0
        self.wrong: list[bytes] = []
        self.start()

    def run(self) -> None:
        while not self._over.is_set():
            try:
                self._connection.request("GET", "/file")
                answer = self._connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                self.lost += 1
                self._connection.close()
                time.sleep(0.05)
            else:
                self.answers += 1
                if answer != b"text" * 1000:
                    self.wrong.append(answer)

    def goes_on(self) -> None:
        before = self.answers
        eventually("answers", lambda: self.answers > before + 5)

    def __enter__(self) -> Self:
        self.goes_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        self._connection.close()


def test_a_client_outside_keeps_its_connection_over_a_checkpoint_that_kills(tmp_path: Path) -> None:
    with Served(tmp_path, ALONE) as nginx, Browser(int((tmp_path / "port").read_text())) as browser:
        family = nginx.family()
        image = checkpoint(nginx, "image", "--kill")
        nginx.wait_gone()
        eventually("their end", lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))
        restart(image, nginx)
        browser.goes_on()
        assert (browser.lost, browser.wrong) == (0, [])


def test_a_client_outside_connects_again_after_a_crash(tmp_path: Path) -> None:
    with Served(tmp_path, ALONE) as nginx, Browser(int((tmp_path / "port").read_text())) as browser:
        image = checkpoint(nginx)
        browser.goes_on()
        assert browser.lost == 0
        nginx.kill_tree()
        eventually("the loss", lambda: browser.lost)
        done = run(nginx, "restart", "-i", image)
        assert done.returncode == 0, done.stderr
        browser.goes_on()
        assert browser.wrong == []
        nginx.goes_on()
