"""Frames: a 32-bit type, a 32-bit length that counts the payload only, the payload (spec section 2, gen-B)."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Protocol

from crd.errors import ImageTruncated
from crd.image.codec import corrupt

if TYPE_CHECKING:
    from crd.image.fields import BytesLike

FRAME = struct.Struct("<II")
PAYLOAD_BYTES_MAX = (1 << 20) + (64 << 10)
"""No payload of crd's profile is longer: 1 MiB of pages and their runs, or 256 KiB of group ids."""
_FIRST_BUFFER_BYTES = 4096


class Source(Protocol):
    """Where an image is read from."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Read up to ``len(buffer)`` bytes and return how many; 0 at the end.  EAGAIN is the source's business."""
        ...


class Sink(Protocol):
    """Where an image is written to."""

    def write(self, *buffers: BytesLike) -> object:
        """Write all the buffers in order.  Short writes and EAGAIN are the sink's business."""
        ...


def read_up_to(source: Source, view: memoryview) -> int:
    """Fill ``view`` from the source; return how many bytes there were before the end."""
    done = 0
    while done < len(view):
        n_read = source.readinto(view[done:])
        if not n_read:
            break
        done += n_read
    return done


class FrameReader:
    """Reads frame after frame, exactly, into one buffer, which grows to the longest.

    Attributes:
        start: offset in the stream of the frame read last.
        offset: bytes read so far.
    """

    def __init__(self, source: Source, payload_bytes_max: int = PAYLOAD_BYTES_MAX) -> None:
        """Read from ``source``, refusing payloads longer than ``payload_bytes_max``."""
        self._source = source
        self._payload_bytes_max = payload_bytes_max
        self._buffer = memoryview(bytearray(_FIRST_BUFFER_BYTES))
        self._frame = memoryview(bytearray(FRAME.size))
        self.start = 0
        self.offset = 0

    def frame(self) -> tuple[int, int]:
        """Read a frame's type and length; its payload must be read next.

        Raises:
            ImageTruncated: the stream ends (EPIPE).
        """
        self.start = self.offset
        self._fill(self._frame, "RECORD")
        record_type, length = FRAME.unpack(self._frame)
        return record_type, length

    def payload(self, length: int, record: str, limit: int = PAYLOAD_BYTES_MAX) -> memoryview:
        """Read the payload; it is valid until the next call.

        Raises:
            ImageCorrupt: it is longer than is allowed; nothing was read (EINVAL).
            ImageTruncated: the stream ends (EPIPE).
        """
        allowed = min(limit, self._payload_bytes_max)
        if length > allowed:
            raise corrupt(f"claims {length} bytes, more than the {allowed} allowed", self.start, record)
        if length > len(self._buffer):
            self._buffer = memoryview(bytearray(min(max(length, 2 * len(self._buffer)), self._payload_bytes_max)))
        view = self._buffer[:length]
        self._fill(view, record)
        return view

    def _fill(self, view: memoryview, record: str) -> None:
        done = read_up_to(self._source, view)
        self.offset += done
        if done < len(view):
            raise ImageTruncated(f"the image ends at offset {self.offset}, inside the {record} at {self.start}",
                                 offset=self.start, record=record, end=self.offset, errno=errno.EPIPE)
