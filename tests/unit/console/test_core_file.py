from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from crd.console.core_file import AnyOrder, core_summary, in_any_order
from crd.console.image_file import Output, opened_for_writing
from crd.errors import CrdError

MIB = 1 << 20


def fill(place: AnyOrder) -> None:
    place.write_at(2 * MIB, b"last")
    place.write_at(0, b"first")


@pytest.fixture
def pipe():
    read, write = os.pipe()
    yield read, write
    for fd in (read, write):
        with suppress(OSError):  # a test has closed it
            os.close(fd)


def test_a_new_file_has_holes(tmp_path: Path) -> None:
    with opened_for_writing(tmp_path / "core") as output:
        with in_any_order(output) as place:
            fill(place)
        assert not (tmp_path / "core").exists()
        output.commit()
    assert (tmp_path / "core").read_bytes() == b"first".ljust(2 * MIB, b"\0") + b"last"
    assert (tmp_path / "core").stat().st_blocks * 512 < MIB


def test_a_stream_gets_the_same_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By way of a file in TMPDIR that has no name."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    with (tmp_path / "stream").open("wb") as stream, in_any_order(Output(stream.fileno())) as place:
        fill(place)
        assert Path(f"/proc/self/fd/{place._fd}").readlink().is_relative_to(tmp_path / "tmp")
        assert os.listdir(tmp_path / "tmp") == []
        assert (tmp_path / "stream").stat().st_size == 0
    assert (tmp_path / "stream").read_bytes() == b"first".ljust(2 * MIB, b"\0") + b"last"


def fail_after_writing(output: Output) -> None:
    with in_any_order(output) as place:
        fill(place)
        raise CrdError("broken")


def test_a_stream_gets_nothing_of_what_failed(pipe: tuple[int, int]) -> None:
    read, write = pipe
    with pytest.raises(CrdError, match="broken"):
        fail_after_writing(Output(write))
    os.set_blocking(read, False)
    with pytest.raises(BlockingIOError):
        os.read(read, 1)


def test_what_cannot_be_written_is_an_error(pipe: tuple[int, int]) -> None:
    with pytest.raises(CrdError, match="the core cannot be written: Illegal seek"):
        AnyOrder(pipe[1]).write_at(0, b"x")
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(CrdError, match="No space left"):
        Output(full.fileno()).write(b"x")
    os.close(pipe[0])
    with pytest.raises(BrokenPipeError):
        Output(pipe[1]).write(b"x")


def test_the_summary_can_be_typed_and_commands_no_terminal() -> None:
    core = {"pid": 7, "comm": "wor\x1b[0m", "exe": "/opt/my program", "threads": 1, "memory_bytes": 4096}
    assert core_summary(core, Path("a b")) == (
        "pid 7 (wor\\x1b[0m), 1 thread, 4 KiB of memory: gdb '/opt/my program' 'a b'")
    assert core_summary({**core, "threads": 2}, Path("-")).endswith(
        "2 threads, 4 KiB of memory: gdb '/opt/my program' FILE")
