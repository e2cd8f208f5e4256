"""Streams that are read in one call."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from crd.errors import NativeError
from crd.native.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from pathlib import Path


@pytest.fixture
def stop() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture
def pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """What is written to the second comes out of the first."""
    read_end, write_end = os.pipe()
    with open(read_end, "rb", 0) as reader, open(write_end, "wb", 0) as writer:
        yield reader, writer


@pytest.fixture
def between() -> Iterator[tuple[int, int]]:
    """A pipe that what is in the other one is moved to."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_a_buffer_is_filled_by_as_many_writes_as_it_takes(stop: int, pipe: tuple[FileIO, FileIO],
                                                          between: tuple[int, int]) -> None:
    reader, writer = pipe
    content = os.urandom(300_000)

    def write() -> None:
        for at in range(0, len(content), 7001):
            writer.write(content[at:at + 7001])
        writer.close()

    writing = threading.Thread(target=write)
    writing.start()
    stream, buffer = Stream(reader.fileno(), stop, between), bytearray(200_000)
    assert stream.read(memoryview(buffer)) == len(buffer)
    assert buffer == content[:200_000]
    assert stream.read(memoryview(buffer)) == 100_000
    assert buffer[:100_000] == content[200_000:]
    assert stream.read(memoryview(buffer)) == 0
    writing.join()


def test_a_file_is_read_without_a_pipe_between(stop: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"what is in it")
    with (tmp_path / "file").open("rb") as file:
        buffer = bytearray(100)
        assert Stream(file.fileno(), stop, None).read(memoryview(buffer)) == 13
        assert buffer[:13] == b"what is in it"


def test_nothing_is_waited_for_once_it_is_stopped(stop: int, pipe: tuple[FileIO, FileIO],
                                                  between: tuple[int, int]) -> None:
    reader, writer = pipe
    writer.write(b"all")
    buffer = bytearray(10)
    threading.Timer(0, os.eventfd_write, (stop, 1)).start()
    assert Stream(reader.fileno(), stop, between).read(memoryview(buffer)) in {0, 3}  # whichever came first


def test_a_descriptor_that_cannot_be_read_is_an_error(stop: int, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, pytest.raises(NativeError, match="Bad file descriptor"):
        Stream(file.fileno(), stop, None).read(memoryview(bytearray(1)))
