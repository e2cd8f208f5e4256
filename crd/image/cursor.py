"""A forward-only look at a stream of bytes that may be anything."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from crd.errors import ImageTruncated
from crd.image.framing import read_up_to

if TYPE_CHECKING:
    from crd.image.framing import Source

CHUNK_BYTES = 64 << 10


class Cursor:
    """Takes, peeks at and skips bytes; itself a Source for the readers of single generations.

    Attributes:
        offset: bytes taken or skipped so far.
        record: what is being read, for errors.
    """

    def __init__(self, source: Source) -> None:
        """Look at ``source`` from its present position on."""
        self._source = source
        self._ahead = bytearray()
        self.offset = 0
        self.record = "HEAD"

    def peek(self, n_bytes: int) -> bytes:
        """Return the next ``n_bytes``, fewer at the end, without taking them."""
        if (missing := n_bytes - len(self._ahead)) > 0:
            view = memoryview(bytearray(missing))
            self._ahead += view[: read_up_to(self._source, view)]
        return bytes(self._ahead[:n_bytes])

    def readinto(self, buffer: memoryview) -> int:
        """Take up to ``len(buffer)`` bytes; return how many, 0 at the end."""
        if self._ahead:
            n_read = min(len(buffer), len(self._ahead))
            buffer[:n_read] = self._ahead[:n_read]
            del self._ahead[:n_read]
        else:
            n_read = self._source.readinto(buffer) or 0
        self.offset += n_read
        return n_read

    def take(self, n_bytes: int) -> bytes:
        """Take exactly ``n_bytes``, which the caller has bounded.

        Raises:
            ImageTruncated: there are fewer.
        """
        start = self.offset
        view = memoryview(bytearray(n_bytes))
        if (n_read := read_up_to(self, view)) < n_bytes:
            raise self._truncated(start, n_bytes, n_read)
        return bytes(view)

    def skip(self, n_bytes: int) -> None:
        """Pass over exactly ``n_bytes``.

        Raises:
            ImageTruncated: there are fewer.
        """
        start = self.offset
        if (skipped := self._pass_over(n_bytes)) < n_bytes:
            raise self._truncated(start, n_bytes, skipped)

    def rest(self) -> int:
        """Pass over everything up to the end; return how many bytes that was."""
        return self._pass_over(None)

    def _pass_over(self, n_bytes: int | None) -> int:
        chunk = memoryview(bytearray(CHUNK_BYTES if n_bytes is None else min(n_bytes, CHUNK_BYTES)))
        done = 0
        while n_bytes is None or done < n_bytes:
            room = chunk if n_bytes is None else chunk[: n_bytes - done]
            if not (n_read := self.readinto(room)):
                break
            done += n_read
        return done

    def _truncated(self, start: int, wanted: int, found: int) -> ImageTruncated:
        return ImageTruncated(
            f"the image ends at offset {self.offset}: {found} of {wanted} bytes of {self.record} at {start}",
            offset=start, record=self.record, end=self.offset, errno=errno.EPIPE)
