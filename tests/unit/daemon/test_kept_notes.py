"""Notes of writes and systemd's store: what a daemon leaves, and what the next one takes over."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from crd.daemon.kept_notes import KeptNotes
from crd.daemon.tracking import Tracks
from crd.ids import Crid

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ONE, TWO = (71, 1000), (72, 1001)


class Store:
    """Systemd's, as sd_notify(3) has it."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._fds: dict[str, int] = {}

    def names(self) -> set[str]:
        """Return the names of what is kept, after all that was said so far."""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._listener, 1000, 1)
            except BlockingIOError:
                return set(self._fds)
            said = dict(line.split("=") for line in data.decode().split("\n"))
            if "FDSTORE" in said:
                assert said["FDPOLL"] == "0", "a userfaultfd seems to be broken to whoever polls it"
                assert said["FDNAME"] not in self._fds
                [self._fds[said["FDNAME"]]] = fds
            elif said["FDNAME"] in self._fds:
                os.close(self._fds.pop(said["FDNAME"]))

    def passed(self) -> dict[str, int]:
        """Return what a new daemon is passed; the store keeps its own."""
        return {name: os.dup(self._fds[name]) for name in self.names()}

    def clear(self) -> None:
        """The unit has stopped."""
        for name in self.names():
            os.close(self._fds.pop(name))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        kept = Store(listener)
        yield kept
        kept.clear()


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) == before


def daemon(tmp_path: Path, store: Store, targets: tuple[str, ...] = ("web",)) -> Tracks:
    """A daemon that has just begun."""
    kept = KeptNotes(tmp_path / "notes")
    tracks = Tracks(kept, enabled=True)
    tracks.inherit(kept.take_over(store.passed(), targets))
    return tracks


def notes() -> int:
    return os.open("/dev/null", os.O_RDONLY)


def image(tracks: Tracks, crid: int, *keys: tuple[int, int], target: str = "web") -> None:
    """Take an image of a target whose writes are noted from there on."""
    with tracks.of(target) as track:
        assert track
        track.follow({key: notes() for key in keys}, Crid(crid), f"{crid:064x}")


def test_the_next_daemon_goes_on_with_them(tmp_path: Path, store: Store) -> None:
    for crid, keys in ((5, (ONE, TWO)), (6, (ONE,)), (7, (ONE, TWO))):
        with daemon(tmp_path, store) as tracks:
            image(tracks, crid, *keys)
            names = store.names()
            assert len(names) == len(keys)
        with daemon(tmp_path, store) as tracks, tracks.of("web") as track:
            assert track
            assert ({*track.fds}, track.base, track.digest, track.inherited) == ({*keys}, crid, f"{crid:064x}", True)
            track.follow({key: notes() for key in keys}, Crid(crid + 100), "")
        assert store.names() == names, "they are the same notes"


def test_what_was_lent_when_the_daemon_ended_is_nobodys(tmp_path: Path, store: Store) -> None:
    with daemon(tmp_path, store) as tracks:
        image(tracks, 5, ONE)
        with tracks.of("web"), daemon(tmp_path, store) as later, later.of("web") as track:
            assert track
            assert (track.fds, track.base) == ({}, None)
            assert store.names() == set()


def test_without_an_image_they_go_back_to_none(tmp_path: Path, store: Store) -> None:
    with daemon(tmp_path, store) as tracks:
        image(tracks, 5, ONE)
        with tracks.of("web") as track:
            assert track
            assert track.base == 5
        with tracks.of("web") as track:
            assert track
            assert ({*track.fds}, track.base) == ({ONE}, None)
    with daemon(tmp_path, store) as tracks, tracks.of("web") as track:
        assert track
        assert track.fds == {}


@pytest.mark.parametrize("how", ["stopped", "removed", "another"])
def test_what_nobody_wants_any_more_is_ended(tmp_path: Path, store: Store, how: str) -> None:
    with daemon(tmp_path, store) as tracks:
        image(tracks, 5, ONE)
        if how == "removed":
            tracks.drop("web")
            assert store.names() == set()
    if how == "stopped":
        store.clear()
    with daemon(tmp_path, store, ("web",) if how != "another" else ("mail",)) as tracks, tracks.of("web") as track:
        assert track
        assert (track.fds, track.base) == ({}, None)
    assert store.names() == set()
    assert list((tmp_path / "notes").iterdir()) == []


def test_a_file_that_says_nothing_is_none(tmp_path: Path, store: Store) -> None:
    with daemon(tmp_path, store) as tracks:
        image(tracks, 5, ONE)
    (tmp_path / "notes" / "web").write_text('{"base": "five"}')
    with daemon(tmp_path, store) as tracks, tracks.of("web") as track:
        assert track
        assert track.fds == {}
    assert store.names() == set()


def test_notes_for_which_there_is_no_room_are_not_kept() -> None:
    with Tracks(enabled=True, fds_max=2) as tracks:
        image(tracks, 5, ONE)
        image(tracks, 6, ONE, TWO, target="db")
        with tracks.of("db") as track:
            assert track
            assert (track.fds, track.base, track.notes(since=False)) == ({}, None, None)
        with tracks.of("web") as track:
            assert track
            assert (len(track.fds), track.base) == (1, 5)
