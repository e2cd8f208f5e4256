from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from crd.errors import ImageNotFound, Obstacle, TargetUnsupported
from tests.support.api import serving

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from crd.api.access import Peer
    from crd.api.server import Server


class Handler:
    """Answers a few methods of io.crd; what it says is easy to recognise."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any], Peer]] = []
        self.waiting = threading.Event()
        self.cancelled = threading.Event()

    async def __call__(self, method: str, parameters: dict[str, Any], peer: Peer,
                       more: Callable[[dict[str, Any]], Awaitable[None]] | None) -> dict[str, Any]:
        self.calls.append((method, parameters, peer))
        if method == "GetImage":
            raise ImageNotFound(f"there is no image {parameters['reference']}", hint="Look again.", reference=7)
        if method == "Check":
            raise TargetUnsupported(reasons=[Obstacle("fd.terminal", "fd 0", "is a terminal", "redirect it")])
        if method == "CancelRequest":
            raise ZeroDivisionError("a mistake in the handler, with a secret")
        if method == "Checkpoint" and more:
            for number in range(3):
                await more({"stage": "memory", "bytes": number})
        if method == "GetRequest" and more:
            self.waiting.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0)
                self.cancelled.set()
                raise
        if method == "ListImages":
            return {"images": ["x" * 1_000_000] * (parameters["limit"] or 0)}
        return {"method": method, "uid": peer.uid, "is_admin": peer.is_admin}


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that other users may enter, with a path short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="crd-api-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def handler() -> Handler:
    return Handler()


@pytest.fixture
def path(home: Path) -> Path:
    return home / "crd.sock"


@pytest.fixture
def server(path: Path, handler: Handler) -> Iterator[Server]:
    with serving(path, handler) as running:
        yield running
