from __future__ import annotations

import fcntl
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from crd.api import listener
from crd.api.listener import listen
from crd.errors import SettingsError, StateInUse

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=[0o022, 0o077, 0o000], ids=oct)
def _umask(request: pytest.FixtureRequest):
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.root
@pytest.mark.usefixtures("_umask")
@pytest.mark.parametrize(("public", "gid", "mode"), [
    (False, 60, 0o660), (False, None, 0o600), (True, 60, 0o666), (True, None, 0o666)])
def test_owner_and_mode_whatever_the_umask(path: Path, *, public: bool, gid: int | None, mode: int) -> None:
    with listen(path, public=public, gid=gid):
        found = path.stat()
    assert stat.S_IMODE(found.st_mode) == mode
    assert (found.st_uid, found.st_gid) == (0, gid or 0)


def test_missing_directories_are_made(home: Path) -> None:
    with listen(home / "a" / "b" / "crd.sock", public=False, gid=None):
        assert (home / "a" / "b" / "crd.sock").is_socket()


def test_a_stale_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    with listen(path, public=False, gid=None), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_living_socket_is_not_touched(path: Path) -> None:
    with listen(path, public=False, gid=None) as living:
        inode = path.stat().st_ino
        with pytest.raises(StateInUse) as refused:
            listen(path, public=False, gid=None)
        assert str(path) in refused.value.message
        assert path.stat().st_ino == inode
        living.accept()[0].close()  # the probe


def test_a_living_socket_with_a_full_backlog_is_not_touched(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(path))
        busy.listen(0)
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.connect(str(path))
            with pytest.raises(StateInUse):
                listen(path, public=False, gid=None)


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_what_is_no_socket_is_not_touched(path: Path, kind: str) -> None:
    if kind == "file":
        path.write_text("mine")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(path.parent / "elsewhere")
    with pytest.raises(SettingsError) as refused:
        listen(path, public=False, gid=None)
    assert "is no socket" in refused.value.message
    assert path.lstat()


@pytest.mark.parametrize("name", ["x" * 200, "x" * 300])
def test_a_path_that_is_too_long(home: Path, name: str) -> None:
    with pytest.raises(SettingsError) as refused:
        listen(home / name, public=False, gid=None)
    assert refused.value.hint


def test_a_directory_that_is_none(home: Path) -> None:
    (home / "file").write_text("")
    with pytest.raises(SettingsError):
        listen(home / "file" / "crd.sock", public=False, gid=None)


def test_a_lock_that_somebody_keeps_holds_nobody_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_LOCK_SECONDS", 0.05)
    fd = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        with listen(path, public=False, gid=None):
            assert path.is_socket()
    finally:
        os.close(fd)
