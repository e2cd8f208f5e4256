"""Pipes spliced into whatever an image is written to."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from crd.engine.stream import DescriptorSink
from crd.errors import EngineError, ImageSinkClosed, ImageSinkFull

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = bytes(range(256)) * 16


@contextmanager
def pipe_of(content: bytes) -> Iterator[int]:
    """A pipe that holds something, and whose writer is gone."""
    read_end, write_end = os.pipe()
    os.write(write_end, content)
    os.close(write_end)
    try:
        yield read_end
    finally:
        os.close(read_end)


def splice_all(sink: DescriptorSink, pipe: int, length: int) -> None:
    while length:
        length -= sink.splice(pipe, length)


def test_into_a_pipe() -> None:
    read_end, write_end = os.pipe()
    with pipe_of(CONTENT) as source:
        splice_all(DescriptorSink(write_end), source, len(CONTENT))
    os.close(write_end)
    with os.fdopen(read_end, "rb") as file:
        assert file.read() == CONTENT


@pytest.mark.parametrize("flags", [0, os.O_APPEND])
def test_into_a_file_behind_what_is_there(tmp_path: Path, flags: int) -> None:
    fd = os.open(tmp_path / "image", os.O_CREAT | os.O_WRONLY | flags)
    sink = DescriptorSink(fd)
    sink.write(b"head")
    with pipe_of(CONTENT) as source:
        splice_all(sink, source, len(CONTENT))
    sink.write(b"tail")
    os.close(fd)
    assert (tmp_path / "image").read_bytes() == b"head" + CONTENT + b"tail"


def test_into_a_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pipe_of(CONTENT) as source:
        splice_all(DescriptorSink(ours.fileno()), source, len(CONTENT))
        assert theirs.recv(len(CONTENT), socket.MSG_WAITALL) == CONTENT


def test_no_more_than_was_asked_for() -> None:
    with pipe_of(CONTENT) as source, open(os.devnull, "wb") as null:
        assert DescriptorSink(null.fileno()).splice(source, 10) == 10
        assert os.read(source, len(CONTENT)) == CONTENT[10:]


def test_a_pipe_that_is_full_and_must_not_block_is_waited_for() -> None:
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    sink = DescriptorSink(write_end)
    assert os.write(write_end, bytes(2 << 20)) <= 1 << 20
    emptied = threading.Thread(target=os.read, args=(read_end, 1 << 20))
    with pipe_of(CONTENT) as source:
        emptied.start()
        splice_all(sink, source, len(CONTENT))
    emptied.join()
    assert os.read(read_end, 1 << 20).endswith(CONTENT)
    os.close(read_end)
    os.close(write_end)


def test_nobody_reads() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with pipe_of(CONTENT) as source, pytest.raises(ImageSinkClosed):
        DescriptorSink(write_end).splice(source, 10)
    os.close(write_end)


def test_nobody_writes() -> None:
    with pipe_of(b"") as source, open(os.devnull, "wb") as null, pytest.raises(EngineError, match="before its end"):
        DescriptorSink(null.fileno()).splice(source, 10)


def test_no_space_is_left() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        sink = DescriptorSink(full.fileno())
        with pipe_of(CONTENT) as source, pytest.raises(ImageSinkFull, match="No space left"):
            splice_all(sink, source, len(CONTENT))
