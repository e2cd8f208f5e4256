"""What is fuzzed: each target takes any bytes; what it raises, and what it takes too long for, is a finding.

A target looks at one thing only, so that an execution takes microseconds and coverage guides well.  Whatever is behind
a checksum gets its input with the right one.
"""

from __future__ import annotations

import io
from contextlib import suppress
from typing import TYPE_CHECKING

from blake3 import blake3

from crd.api import interface
from crd.api.protocol import INTERFACE, MessageBuffer, ServiceError, decode_call, decode_reply
from crd.archive import manifest, pack
from crd.errors import BadRequest, BlobCorrupt, ImageError
from crd.image.core.writer import write_core
from crd.image.framing import FrameReader
from crd.image.inspect import inspect
from crd.image.reader import PROFILE_RECORDS, ImageReader
from crd.image.self_checkpoint import SelfCheckpoint
from crd.image.verify import verified
from crd.native.pages import PageKey
from tests.support.builders import MemorySink, make_image

if TYPE_CHECKING:
    from collections.abc import Callable

HEADER_BYTES = 267
HEADER = make_image()[:HEADER_BYTES]
_KINDS = [*PROFILE_RECORDS.values()]
_METHODS = [*interface.load(INTERFACE).methods.values()]
_SECRET = bytes(range(32))
_MODEST_BYTES = 1 << 20


def codec(data: bytes) -> None:
    """Frames, one after the other: a record that can be read is written as the same bytes."""
    frames = FrameReader(io.BytesIO(data), payload_bytes_max=4096)
    with suppress(ImageError):
        while True:
            number, length = frames.frame()
            kind = _KINDS[number % len(_KINDS)]
            payload = frames.payload(length, kind.record_name)
            assert kind.decode(payload, frames.start).encode() == payload


def self_checkpoint(data: bytes) -> None:
    """The smallest image: what can be read is read again from what is written."""
    try:
        image = SelfCheckpoint.read(io.BytesIO(data))
    except ImageError as error:
        assert 0 <= error.offset <= len(data)  # noqa: PT017  # no error is right too
        return
    sink = MemorySink()
    image.write(sink)
    assert SelfCheckpoint.read(io.BytesIO(sink.getvalue())) == image


def profile(data: bytes) -> None:
    """What may follow the header of an image of crd."""
    try:
        for _ in verified(ImageReader(io.BytesIO(HEADER + data))):
            pass
    except ImageError as error:
        assert HEADER_BYTES <= error.offset <= HEADER_BYTES + len(data)  # noqa: PT017


class _Nowhere:
    def write_at(self, offset: int, data: bytes) -> None:
        assert offset >= 0


def core(data: bytes) -> None:
    """The same, as the core of its first task."""
    try:
        write_core(io.BytesIO(HEADER + data), _Nowhere())
    except ImageError as error:
        assert HEADER_BYTES <= error.offset <= HEADER_BYTES + len(data)  # noqa: PT017


def generations(data: bytes) -> None:
    """An image of any generation: what is broken is said to be broken inside of it."""
    try:
        found = inspect(io.BytesIO(data))
    except ImageError as error:
        assert error.offset == 0  # noqa: PT017
        return
    if found.broken:
        assert 0 <= found.broken.offset <= found.broken.end <= len(data)
    else:
        assert found.image_bytes + found.trailing_bytes == len(data)


def archive(data: bytes) -> None:
    """The objects of the archive, with the right sums."""
    with suppress(BlobCorrupt):
        head = manifest.parse_head(data)
        if head.n_pages + head.n_literal_bytes < _MODEST_BYTES:
            found = manifest.decode(data + blake3(data).digest())
            assert manifest.decode(b"".join(found.encode())) == found
    with suppress(BlobCorrupt):
        pages = data[:1] + bytes(7)
        hashes_at = 1 + pack.ENTRY.size * -(-pages[0] // 64)
        entries, hashes = data[1:hashes_at], data[hashes_at:hashes_at + 16 * pages[0]]
        head = pack.header(1, PageKey(_SECRET))
        tail = b"".join(pack.trailer(pack.digest_of(head, entries, hashes), entries, hashes))
        size = int.from_bytes(data[-4:], "little")
        n_bytes = pack.tail_bytes(tail, size)
        assert pack.parse(1, head, tail[-n_bytes:], size).pages <= pages[0]


def varlink(data: bytes) -> None:
    """What arrives on the socket, in two pieces."""
    buffer = MessageBuffer(1024)
    with suppress(BadRequest):
        for piece in (data[:len(data) // 2], data[len(data) // 2:]):
            for message in buffer.feed(piece):
                with suppress(BadRequest):
                    decode_reply(message)
                with suppress(BadRequest, ServiceError):
                    call = decode_call(message)
                    _METHODS[len(call.method) % len(_METHODS)].parameters.check(call.parameters or {})


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (codec, self_checkpoint, profile, core, generations, archive, varlink)}
