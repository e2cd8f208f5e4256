from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from crd.api.client import Client, default_socket
from crd.errors import (
    ApiError,
    BadRequest,
    CrdError,
    DaemonUnavailable,
    ImageNotFound,
    Obstacle,
    TargetUnsupported,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def client(path: Path, server: object) -> Iterator[Client]:
    with Client(path) as connected:
        yield connected


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """A daemon that answers every call with the same bytes and hangs up."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connected, _ = listener.accept()
            with connected:
                connected.recv(1 << 16)
                connected.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def test_calls(client: Client) -> None:
    assert client.call("GetStatus")["method"] == "GetStatus"
    assert client.call("HoldTarget", name="a")["method"] == "HoldTarget"


def test_streams(client: Client) -> None:
    replies = list(client.stream("Checkpoint", target="a"))
    assert [reply.get("bytes") for reply in replies] == [0, 1, 2, None]
    assert client.call("GetStatus")


def test_errors_are_what_they_were_in_the_daemon(client: Client) -> None:
    with pytest.raises(ImageNotFound) as missing:
        client.call("GetImage", reference="4711")
    assert missing.value.to_json() == {"error": "catalog.image-not-found", "message": "there is no image 4711",
                                       "hint": "Look again.", "retryable": False, "reference": 7}
    with pytest.raises(TargetUnsupported) as refused:
        client.call("Check", pid=1)
    assert refused.value.reasons == (Obstacle("fd.terminal", "fd 0", "is a terminal", "redirect it"),)
    with pytest.raises(CrdError) as failed:
        client.call("CancelRequest", number=1)
    assert failed.value.code == "crd.failed"


def test_calls_that_the_daemon_does_not_know(client: Client) -> None:
    with pytest.raises(BadRequest, match="reference"):
        client.call("GetImage", reference=7)
    with pytest.raises(ApiError) as unknown:
        client.call("Nothing")
    assert "same version" in unknown.value.hint


def test_no_socket(path: Path) -> None:
    with pytest.raises(DaemonUnavailable) as refused:
        Client(path)
    assert str(path) in refused.value.message
    assert "systemctl restart crd.socket crd" in refused.value.hint


def test_nobody_listens(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    with pytest.raises(DaemonUnavailable, match="no daemon listens"):
        Client(path)


def test_no_socket_of_ours(path: Path, home: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(str(path))
        with pytest.raises(DaemonUnavailable, match="cannot be connected to"):
            Client(path)
    with pytest.raises(DaemonUnavailable, match="cannot be connected to"):
        Client(home / ("x" * 200))
    (home / "file").touch()
    with pytest.raises(DaemonUnavailable, match="it is no socket"):
        Client(home / "file")


@pytest.mark.parametrize("answer", [b"", b'{"parameters":', b'{"parameters":{}}'])
def test_a_daemon_that_hangs_up(path: Path, answer: bytes) -> None:
    with answering(path, answer), Client(path) as client, pytest.raises(DaemonUnavailable, match="hung up"):
        client.call("GetStatus")


@pytest.mark.parametrize("answer", [b"\0", b"hello\0", b'{"parameters": 7}\0', b"\xff\xfe\0"])
def test_a_server_that_is_no_daemon(path: Path, answer: bytes) -> None:
    with answering(path, answer), Client(path) as client, pytest.raises(BadRequest):
        client.call("GetStatus")


@pytest.mark.parametrize("failure", [b"{}", b'{"code": "from.the-future", "message": "m"}',
                                     b'{"code": 7, "message": [], "hint": null, "details": "x"}'])
def test_failures_that_nobody_knows(path: Path, failure: bytes) -> None:
    answer = b'{"error":"io.crd.Failed","parameters":' + failure + b"}\0"
    with answering(path, answer), Client(path) as client, pytest.raises(CrdError) as failed:
        client.call("GetStatus")
    assert failed.value.exit_status == 1


def test_a_daemon_that_does_not_answer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crd.api.client._PATIENCE_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with Client(path) as client, pytest.raises(DaemonUnavailable, match="does not answer"):
            client.call("GetStatus")


def test_a_daemon_that_accepts_nobody(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crd.api.client._PATIENCE_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        with Client(path), pytest.raises(DaemonUnavailable, match="cannot be connected to"):
            Client(path)


def test_a_daemon_that_cannot_start_is_told_of_while_its_socket_is_there(path: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crd.api.client._UNHEARD_SECONDS", 0.01)
    monkeypatch.setattr("crd.api.client._SIGN_SECONDS", 0.01)
    monkeypatch.setattr("crd.api.client._PATIENCE_SECONDS", 0.1)
    told: list[Path] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with Client(path, told.append) as client, pytest.raises(DaemonUnavailable, match="does not answer"):
            client.call("GetStatus")
    assert told == [path]


def test_a_daemon_that_is_only_slow_is_not_told_of(path: Path, server: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crd.api.client._UNHEARD_SECONDS", 0.0)
    monkeypatch.setattr("crd.api.client._SIGN_SECONDS", 60.0)
    with Client(path, lambda path: pytest.fail(f"{path} answers")) as client:
        assert client.call("GetStatus")


def test_where_the_daemon_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRD_API__SOCKET", raising=False)
    assert str(default_socket()) == "/run/crd/crd.sock"
    monkeypatch.setenv("CRD_API__SOCKET", "/elsewhere")
    assert str(default_socket()) == "/elsewhere"
