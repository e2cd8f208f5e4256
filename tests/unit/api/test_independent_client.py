"""The server as seen by the Varlink project's own client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import varlink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def connection(path: Path, server: object) -> Iterator[object]:
    with varlink.Client(f"unix:{path}") as client, client.open("io.crd") as opened:
        yield opened


def test_introspection(path: Path, server: object) -> None:
    with varlink.Client(f"unix:{path}") as client:
        assert set(client.get_interfaces()) == {"org.varlink.service", "io.crd"}
        assert "method Checkpoint" in client.get_interface("io.crd").get_description()


def test_calls(connection) -> None:
    connection.HoldTarget("web")
    connection.AddTarget({"name": "web", "pid": 7, "every": "30s", "held": False})
    connection.RemoveTarget(name="web")
    connection.GetStatus(_oneway=True)


def test_streams(connection) -> None:
    stages = [reply.get("stage") for reply in connection.Checkpoint(target="web", _more=True)]
    assert stages == ["memory"] * 3 + [None]


def test_failures(connection) -> None:
    with pytest.raises(varlink.VarlinkError) as failed:
        connection.GetImage("4711")
    assert failed.value.error() == "io.crd.Failed"
    assert failed.value.parameters()["code"] == "catalog.image-not-found"


def test_errors_of_the_service(path: Path, connection) -> None:
    with pytest.raises(varlink.InvalidParameter):
        connection.Restart("7", "sideways")
