"""Whether a name still leads to the file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from crd.target.paths import Reach, reach
from crd.target.wording import process_name
from crd.text import printable

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("content")
    return path


def reached(path: Path, change: str = "") -> Reach:
    """Open a file, change something about it, and ask as /proc shows it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        match change:
            case "unlink":
                path.unlink()
            case "replace":
                new = path.with_name("new")
                new.write_text("other")
                new.rename(path)
            case "rename":
                path.rename(path.with_name("elsewhere"))
            case "unlink one of two":
                os.link(path, path.with_name("second"))
                path.unlink()
        return reach(os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd))
    finally:
        os.close(fd)


@pytest.mark.parametrize(("change", "expected"), [
    ("", Reach.SAME), ("rename", Reach.SAME), ("unlink", Reach.DELETED), ("replace", Reach.REPLACED),
    ("unlink one of two", Reach.UNLINKED)])
def test_files_that_change(file: Path, change: str, expected: Reach) -> None:
    assert reached(file, change) is expected


def test_a_file_called_deleted(tmp_path: Path) -> None:
    path = tmp_path / "x (deleted)"
    path.write_text("here")
    assert reached(path) is Reach.SAME
    assert reached(path, "unlink") is Reach.DELETED


def test_a_directory_in_place_of_the_file_is_no_replacement(file: Path) -> None:
    with file.open() as opened:
        file.unlink()
        file.mkdir()
        assert reach(f"{file} (deleted)", os.fstat(opened.fileno())) is Reach.DELETED


@pytest.mark.parametrize("link", ["", "file", "pipe:[7]", "/nowhere\0", "/" + "x" * 5000, "//nowhere/at/all"])
def test_names_that_lead_nowhere(file: Path, link: str) -> None:
    assert reach(link, file.stat()) is Reach.HIDDEN


def test_the_last_component_is_not_followed(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    assert reach(str(link), file.stat()) is Reach.HIDDEN
    assert reach(str(link), link.lstat()) is Reach.SAME


@pytest.mark.parametrize(("text", "expected"), [
    ("plain (name) é", "plain (name) é"), ("\x1b[2J\n\r\0", r"\x1b[2J\n\r\x00"), ("\udcff\udcfe", r"\udcff\udcfe"),
    ("\u202eevil", r"\u202eevil")])
def test_hostile_names_are_shown_as_escapes(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert printable(text).encode().decode().isprintable()


def test_names_of_processes() -> None:
    assert process_name(os.getpid()).startswith(f"pid {os.getpid()} (")
    assert process_name(2**22 + 1) == f"pid {2**22 + 1}"
