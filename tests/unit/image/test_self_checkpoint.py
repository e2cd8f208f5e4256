"""The 339 bytes of spec section 7.1, and how v14-rc2's reader refuses what is not like them (section 5)."""

from __future__ import annotations

import errno
import io
import struct

import pytest

from crd.errors import ImageError, ImageTruncated
from crd.image.header import Header
from crd.image.records import Numbering, String, Task
from crd.image.self_checkpoint import SelfCheckpoint
from tests.support.builders import MemorySink


def uts(text: bytes) -> bytes:
    return text.ljust(65, b"\0")


def frame(kind: int, payload: bytes) -> bytes:
    return struct.pack("<II", kind, len(payload)) + payload


def example(buffer: int = 2, string: int = 3, task: int = 101) -> bytes:
    """Section 7.1, written down independently of crd's records."""
    head = bytes.fromhex("00d2a2c00cedfe00 02000600 1d000100 4100410041000000 c0ecd04900000000 0100000000000000")
    return b"".join([
        frame(1, head), frame(buffer, uts(b"2.6.29-rc8-cr")), frame(buffer, uts(b"#1 Mon Mar 30 12:00:00 EDT 2009")),
        frame(buffer, uts(b"i686")),
        frame(task, bytes.fromhex("0000000000000000000000001100000010000000 00000000")),
        frame(string, b"self".ljust(16, b"\0")), frame(5001, bytes.fromhex("00efdec00c2a2d00"))])


EXAMPLE = example()
FULL_SERIES = example(buffer=3, string=4, task=102)


def spoilt(offset: int, data: bytes) -> bytes:
    return EXAMPLE[:offset] + data + EXAMPLE[offset + len(data):]


def test_the_example_is_339_bytes():
    assert len(EXAMPLE) == 339


def test_reads_every_field():
    assert SelfCheckpoint.read(io.BytesIO(EXAMPLE)) == SelfCheckpoint(
        Header(major=2, minor=6, patch=29, rev=1, time=0x49D0ECC0, flags=1, release="2.6.29-rc8-cr",
               version="#1 Mon Mar 30 12:00:00 EDT 2009", machine="i686"),
        Task(state=0, exit_state=0, exit_code=0, exit_signal=17), String(data=b"self".ljust(16, b"\0")))


@pytest.mark.parametrize(("image", "numbering"), [(EXAMPLE, Numbering.PATCH_04), (FULL_SERIES, Numbering.FULL_SERIES)])
def test_round_trip_byte_for_byte(image, numbering):
    checkpoint = SelfCheckpoint.read(io.BytesIO(image))
    sink = MemorySink()
    checkpoint.write(sink)
    assert sink.getvalue() == image
    assert checkpoint.numbering is numbering


def test_padding_of_the_task_is_kept():
    image = spoilt(0x113 + 20, b"\x41\0")
    sink = MemorySink()
    SelfCheckpoint.read(io.BytesIO(image)).write(sink)
    assert sink.getvalue() == image


def test_stops_behind_the_tail():
    source = io.BytesIO(EXAMPLE + b"checkpoint id 1\n")
    SelfCheckpoint.read(source)
    assert source.read() == b"checkpoint id 1\n"


def test_every_prefix_ends_too_early():
    for n_bytes in range(len(EXAMPLE)):
        with pytest.raises(ImageTruncated) as caught:
            SelfCheckpoint.read(io.BytesIO(EXAMPLE[:n_bytes]))
        assert caught.value.details["errno"] == errno.EPIPE
        assert caught.value.offset == max(start for start in (0, 48, 121, 194, 267, 299, 323) if start <= n_bytes)


@pytest.mark.parametrize(("offset", "data"), [
    (0, b"\x02"), (4, b"\x27"), (4, b"\x29"), (8, b"\x01"),  # HEAD: type, length, magic
    (0x10 + 8, b"\x40"), (0x10 + 10, b"\x42"), (0x10 + 12, b"\x00"),  # uts lengths
    (0x28, b"\x02"), (0x28, b"\x03"), (0x2B, b"\x01"),  # flags beside the checkpoint bit
    (0x30, b"\x04"), (0x34, b"\x40"), (0x79, b"\x03"),  # BUFFER: type, length, numbering that changes
    (0x10B, b"\x66"), (0x10F, b"\x17"), (0x10F, b"\x19"),  # TASK
    (0x123, b"\x11"), (0x124, b"\x01"), (0x123, b"\x0f"),  # name length 17, 272, below the STRING's
    (0x12B, b"\x04"), (0x12F, b"\x11"), (0x12F, b"\xff\xff\xff\xff"),  # STRING
    (0x143, b"\x00"), (0x147, b"\x07"), (0x14B, b"\x01"),  # TAIL
])
def test_refuses_with_einval(offset, data):
    with pytest.raises(ImageError) as caught:
        SelfCheckpoint.read(io.BytesIO(spoilt(offset, data)))
    assert caught.value.details["errno"] == errno.EINVAL


@pytest.mark.parametrize("offset", [0x10, 0x12, 0x14, 0x16, 0x20, 0x38, 0x81, 0xCA, 0x113, 0x117, 0x11B, 0x11F])
def test_accepts_what_v14_does_not_compare(offset):
    SelfCheckpoint.read(io.BytesIO(spoilt(offset, b"\x55")))


def test_flags_zero_are_accepted():
    assert SelfCheckpoint.read(io.BytesIO(spoilt(0x28, b"\0"))).header.flags == 0


def test_the_last_byte_of_a_string_becomes_nul():
    image = spoilt(0x133, b"averylongprogram")
    assert SelfCheckpoint.read(io.BytesIO(image)).comm.text == "averylongprogra"


def test_an_empty_string_is_left_alone():
    image = EXAMPLE[:0x12B] + frame(3, b"") + EXAMPLE[0x143:]
    assert SelfCheckpoint.read(io.BytesIO(image)).comm == String(data=b"")


def test_too_long_a_payload_is_not_consumed():
    source = io.BytesIO(spoilt(0x12F, b"\x11"))
    with pytest.raises(ImageError):
        SelfCheckpoint.read(source)
    assert source.tell() == 0x133
