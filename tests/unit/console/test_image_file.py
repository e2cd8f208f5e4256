from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import click
import pytest

from crd.console import image_file
from crd.console.image_file import opened_for_reading, opened_for_writing, write_pid_file
from crd.errors import CrdError


@pytest.fixture(params=["nameless", "named"])
def _file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With files without names, and without."""
    real = os.open

    def without(path, flags, *rest, **options):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *rest, **options)

    if request.param == "named":
        monkeypatch.setattr(image_file.os, "open", without)


@pytest.mark.usefixtures("_file_system")
class TestFiles:
    def test_a_new_file_is_there_once_it_is_committed(self, tmp_path: Path) -> None:
        path = tmp_path / "image"
        with opened_for_writing(path) as output:
            os.write(output.fd, b"image")
            assert not path.exists()
            output.commit()
            assert path.read_bytes() == b"image"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.listdir(tmp_path) == ["image"]

    def test_an_old_file_is_replaced_at_once(self, tmp_path: Path) -> None:
        path = tmp_path / "image"
        path.write_text("old")
        path.chmod(0o644)
        with opened_for_writing(path) as output:
            os.write(output.fd, b"new")
            assert path.read_text() == "old"
            output.commit()
        assert path.read_text() == "new"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    @pytest.mark.parametrize("old", [True, False])
    def test_a_failure_leaves_what_was_there(self, tmp_path: Path, *, old: bool) -> None:
        path = tmp_path / "image"
        if old:
            path.write_text("old")
        with opened_for_writing(path) as output:
            os.write(output.fd, b"new")
        assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("image", "old")] * old

    def test_a_link_leads_to_the_file_that_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        link = tmp_path / "link"
        link.symlink_to("there/image")
        with opened_for_writing(link) as output:
            os.write(output.fd, b"image")
            output.commit()
        assert link.is_symlink()
        assert (tmp_path / "there" / "image").read_bytes() == b"image"


def test_directories_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(CrdError, match="No such file or directory"), opened_for_writing(tmp_path / "none" / "image"):
        pytest.fail("opened")


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CrdError, match="Is a directory"), opened_for_writing(tmp_path):
        pytest.fail("opened")
    with pytest.raises(CrdError, match="Is a directory"), opened_for_reading(tmp_path):
        pytest.fail("opened")


def test_devices_are_written_to_as_they_are() -> None:
    with opened_for_writing(Path("/dev/null")) as output:
        assert os.write(output.fd, b"image") == 5
        output.commit()
    assert Path("/dev/null").is_char_device()


def test_pipes_with_names(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(fifo.read_bytes()))
    reader.start()
    with opened_for_writing(fifo) as output:
        os.write(output.fd, b"image")
        output.commit()
    reader.join()
    assert received == [b"image"]
    assert fifo.is_fifo()


def test_terminals_are_refused() -> None:
    primary, terminal = os.openpty()
    path = Path(os.ttyname(terminal))
    with click.Context(click.Command("crd")), pytest.raises(click.UsageError, match="terminal"), \
            opened_for_writing(path):
        pytest.fail("opened")
    os.close(primary)
    os.close(terminal)


def test_reading(tmp_path: Path) -> None:
    (tmp_path / "image").write_text("image")
    with opened_for_reading(tmp_path / "image") as fd:
        assert os.read(fd, 10) == b"image"
    with pytest.raises(CrdError, match="none cannot be read"), opened_for_reading(tmp_path / "none"):
        pytest.fail("opened")


def test_pid_files(tmp_path: Path) -> None:
    write_pid_file(tmp_path / "a.pid", 4242)
    write_pid_file(tmp_path / "a.pid", 7)
    assert (tmp_path / "a.pid").read_text() == "7\n"
    assert os.listdir(tmp_path) == ["a.pid"]
    with pytest.raises(CrdError, match="cannot be written"):
        write_pid_file(tmp_path / "none" / "a.pid", 7)


def test_a_link_that_leads_to_itself_is_no_place_for_an_image(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CrdError, match="Too many levels of symbolic links") as refused, \
            opened_for_writing(tmp_path / "loop"):
        pass
    assert "link" in refused.value.hint
