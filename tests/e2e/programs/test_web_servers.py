"""gunicorn and uvicorn with their workers, and a client that keeps its connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.servers import Served
from tests.support.victims import until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

APPLICATION = """
import os
counts = {}

def answer(client):
    counts[client] = counts.get(client, 0) + 1
    return b"%d %d" % (os.getpid(), counts[client])

def wsgi(request, start):
    body = answer(request["QUERY_STRING"])
    start("200 OK", [("Content-Length", str(len(body)))])
    return [body]

async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    body = answer(scope["query_string"].decode())
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""

CLIENT = """
import http.client
pathlib.Path("application.py").write_text(APPLICATION)
if sys.argv[1] == "gunicorn":
    server = served(sys.executable, "-m", "gunicorn", "--workers", "2", "--threads", "4", "--keep-alive", "600",
                    "--no-control-socket", "--bind", f"127.0.0.1:{port}", "application:wsgi")
else:
    server = served(sys.executable, "-m", "uvicorn", "--workers", "2", "--timeout-keep-alive", "600",
                    "--lifespan", "off", "--port", str(port), "application:asgi")
clients = []
for at in range(4):
    clients.append(http.client.HTTPConnection("127.0.0.1", port))
    clients[-1].sock = connected("127.0.0.1", port)
workers = {}
for number in range(1, 10**9):
    for at, client in enumerate(clients):
        client.request("GET", f"/?{at}")
        worker, count = client.getresponse().read().split()
        assert int(count) == number and workers.setdefault(at, worker) == worker, (worker, count, number, workers)
    acknowledge(number)
"""


@pytest.mark.parametrize("server", ["gunicorn", "uvicorn"])
def test_workers_with_a_state_of_their_own(tmp_path: Path, server: str) -> None:
    with Served(tmp_path, f"APPLICATION = {APPLICATION!r}\n{CLIENT}", server) as served:
        until("both workers", lambda: len(served.family()) >= 4)
        for number in range(2):
            served.cycle(f"{number}.image")
