"""Calls after which the connection carries bytes."""

from __future__ import annotations

import asyncio
import random
import socket
from typing import TYPE_CHECKING, Any

import pytest

from crd.api.access import Limits
from crd.api.channel import Channel, PeerLost
from crd.api.client import Client
from crd.errors import DaemonUnavailable, ImageCorrupt, ImageNotFound
from tests.support.api import connect, encoded, hung_up, receive, serving

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = random.Random(3).randbytes(3 << 20)


class Store:
    """Takes and gives CONTENT, as a test says."""

    def __init__(self) -> None:
        self.taken = b""
        self.gone: list[BaseException] = []
        self.fails_before: ImageNotFound | None = None
        self.gives_bytes = len(CONTENT)

    async def __call__(self, method: str, _parameters: dict[str, Any], _peer: object, channel: object) -> Any:
        assert isinstance(channel, Channel)
        if self.fails_before:
            raise self.fails_before
        await channel.begin({"bytes": len(CONTENT)})
        try:
            return await (self.give(channel) if method == "Export" else self.take(channel))
        except (PeerLost, asyncio.CancelledError) as error:
            self.gone.append(error)
            raise

    async def give(self, channel: Channel) -> dict[str, Any]:
        await channel.write(CONTENT[:self.gives_bytes])
        if self.gives_bytes < len(CONTENT):
            raise PeerLost("damaged")
        return {"given": self.gives_bytes}

    async def take(self, channel: Channel) -> dict[str, Any]:
        while data := await channel.read():
            self.taken += data
        if self.taken != CONTENT:
            raise ImageCorrupt("it is another")
        return {"taken": len(self.taken)}


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("c") / "s"


def received(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := connection.recv(count - len(data))):
        data += more
    return data


def test_bytes_come_between_two_replies(path: Path, store: Store) -> None:
    with serving(path, store), Client(path) as client:
        first, connection = client.upgrade("Export", reference="1")
        assert first == {"bytes": len(CONTENT)}
        assert received(connection, len(CONTENT)) == CONTENT
        assert client.last() == {"given": len(CONTENT)}
        assert connection.recv(1) == b"", "nothing else is to be said on such a connection"


def test_bytes_go_until_the_end_is_closed(path: Path, store: Store) -> None:
    with serving(path, store), Client(path) as client:
        _, connection = client.upgrade("Import")
        connection.sendall(CONTENT)
        connection.shutdown(socket.SHUT_WR)
        assert client.last() == {"taken": len(CONTENT)}


def test_errors_before_and_after_the_bytes(path: Path, store: Store) -> None:
    with serving(path, store), Client(path) as client:
        _, connection = client.upgrade("Import")
        connection.sendall(b"something else")
        connection.shutdown(socket.SHUT_WR)
        with pytest.raises(ImageCorrupt, match="it is another"):
            client.last()
    store.fails_before = ImageNotFound("there is none")
    with serving(path, store), Client(path) as client, pytest.raises(ImageNotFound, match="there is none"):
        client.upgrade("Export", reference="1")


def test_what_is_cut_short_has_no_second_reply(path: Path, store: Store) -> None:
    store.gives_bytes = 100_000
    with serving(path, store), Client(path) as client:
        _, connection = client.upgrade("Export", reference="1")
        assert received(connection, len(CONTENT)) == CONTENT[:100_000]
        with pytest.raises(DaemonUnavailable):
            client.last()


def test_who_hangs_up_or_stalls_ends_the_call(path: Path, store: Store) -> None:
    with serving(path, store, limits=Limits(idle_seconds=2)):
        with Client(path) as client:
            client.upgrade("Export", reference="1")
        with connect(path) as stalled:
            stalled.sendall(encoded("io.crd.Import", upgrade=True))
            assert hung_up(stalled).count(b"\0") == 1
    assert len(store.gone) == 2


@pytest.mark.parametrize("call", [encoded("io.crd.Export", parameters={"reference": "1"}),
                                  encoded("io.crd.Import", more=True)])
def test_such_a_method_needs_the_upgrade(path: Path, store: Store, call: bytes) -> None:
    with serving(path, store), connect(path) as client:
        client.sendall(call)
        [refused] = receive(client)
        assert refused["error"] == "org.varlink.service.MethodNotImplemented"
