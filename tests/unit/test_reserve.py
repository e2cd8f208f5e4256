"""Room that is kept back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd import reserve
from crd.reserve import RESERVE_BYTES, Reserve

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_it_is_there_in_earnest_and_given_up_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "reserve"
    kept = Reserve(path)
    assert (kept.held_bytes, kept.give()) == (0, False)
    kept.begin()
    assert kept.held_bytes == RESERVE_BYTES
    assert path.stat().st_blocks * 512 >= RESERVE_BYTES
    assert path.stat().st_mode & 0o777 == 0o600
    parts = 0
    while kept.give():
        parts += 1
    assert parts >= 4
    assert (kept.held_bytes, path.stat().st_blocks) == (0, 0)
    kept.take()
    assert Reserve(path).held_bytes == RESERVE_BYTES
    assert [*tmp_path.iterdir()] == [path]


def test_what_there_is_no_room_for_is_not_kept_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Reserve(tmp_path / "reserve")
    room = RESERVE_BYTES // 2

    def allocate(fd: int, offset: int, n_bytes: int) -> None:
        if offset + n_bytes > room:
            raise OSError(28, "No space left on device")
        reserve.os.truncate(fd, offset + n_bytes)

    monkeypatch.setattr(reserve.os, "posix_fallocate", allocate)
    kept.take()
    assert kept.held_bytes == room
    room = 0
    kept.begin()
    assert 0 < kept.held_bytes < RESERVE_BYTES // 2, "a part is given up so that something can be written at all"


def test_what_is_no_file_of_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"precious")
    (tmp_path / "reserve").symlink_to("other")
    kept = Reserve(tmp_path / "reserve")
    kept.take()
    assert not kept.give()
    assert (tmp_path / "other").read_bytes() == b"precious"
