"""Many small files read by one call."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crd.native.files import read_files


def test_files_and_links_in_order(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\0two")
    (tmp_path / "empty").touch()
    (tmp_path / "b\udcff").write_bytes(b"three")
    (tmp_path / "link").symlink_to("nowhere at all")
    names = [str(tmp_path / name) for name in ("a", "empty", "b\udcff", "link")]
    assert read_files(names[:3], names[3:]) == [b"one\0two", b"", b"three", b"nowhere at all"]
    assert read_files([]) == []
    assert read_files([], ["/proc/self/cwd"]) == [bytes(Path.cwd())]


def test_more_than_there_was_room_for(tmp_path: Path) -> None:
    large = os.urandom(100_000)
    (tmp_path / "large").write_bytes(large)
    (tmp_path / "small").write_bytes(b"small")
    names = [str(tmp_path / name) for name in ("large", "small")]
    assert read_files([*names, names[0]]) == [large, b"small", large]


def test_one_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    with pytest.raises(FileNotFoundError) as caught:
        read_files([str(tmp_path / "there"), str(tmp_path / "missing")])
    assert caught.value.filename == str(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        read_files([str(tmp_path)])
