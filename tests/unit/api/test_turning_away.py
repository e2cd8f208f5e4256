"""A daemon that cannot start, and who waits for it."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from crd.api import turning_away as module
from crd.api.client import Client
from crd.api.turning_away import turning_away
from crd.errors import DaemonUnavailable, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WRONG = SettingsError("crd.toml:3: unknown key", hint="Remove it.")


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "sock"))
        listening.listen()
        yield listening


def fails(listener: int | None) -> None:
    with pytest.raises(SettingsError), turning_away(listener):
        raise WRONG


@pytest.mark.parametrize("root", [True, False])
def test_all_who_wait_hear_it_and_root_hears_why(listener: socket.socket, tmp_path: Path, *, root: bool,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOT_UID", os.getuid() if root else os.getuid() + 1)
    clients = [Client(tmp_path / "sock") for _ in range(3)]
    fails(listener.fileno())
    for client in clients:
        with client, pytest.raises(DaemonUnavailable) as told:
            client.call("GetStatus")
        assert (WRONG.message in told.value.message, told.value.hint == WRONG.hint) == (root, root)
        assert "does not run" in told.value.message
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_who_has_left_and_no_socket_are_no_fault(listener: socket.socket, tmp_path: Path) -> None:
    Client(tmp_path / "sock").close()
    fails(listener.fileno())
    fails(None)


def test_who_comes_while_all_is_well_is_left_waiting(listener: socket.socket, tmp_path: Path) -> None:
    with Client(tmp_path / "sock"):
        with turning_away(listener.fileno()):
            pass
        listener.setblocking(False)
        listener.accept()[0].close()
