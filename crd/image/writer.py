"""Writes an image of crd's profile, front to back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.errors import ImageError
from crd.image.framing import FRAME, PAYLOAD_BYTES_MAX, Sink
from crd.image.profile import PAGE_BYTES, PAGES_PER_RECORD_MAX, Pages, SharedPages
from crd.image.records import Tail

if TYPE_CHECKING:
    from collections.abc import Callable

    from crd.image.codec import Record
    from crd.image.fields import BytesLike
    from crd.image.header import Header
    from crd.image.since import PagesSince

_GATHERED_BYTES_MAX = 64 << 10


class ImageWriter:
    """Encodes records into a sink; small ones are gathered into writes of up to 64 KiB.

    Attributes:
        offset: bytes of the image so far, including what is still gathered.
    """

    def __init__(self, sink: Sink) -> None:
        """Write to ``sink``."""
        self._sink = sink
        self._gathered = bytearray()
        self.offset = 0

    def header(self, header: Header) -> None:
        """Write HEAD and its three BUFFERs."""
        for record in header.to_records():
            self.write(record)

    def write(self, record: Record) -> None:
        """Write a record.

        Raises:
            ImageError: a value does not fit its field, or the payload is too long.
        """
        self._gather(record, record.encode(), 0)
        if len(self._gathered) >= _GATHERED_BYTES_MAX:
            self.flush()

    def write_bulk(self, record: Pages | SharedPages | PagesSince, *pages: BytesLike) -> None:
        """Write a memory record and its pages, which go to the sink uncopied.

        Args:
            record: with its runs; ``data`` stays empty.
            pages: the bytes of all runs, in order.

        Raises:
            ImageError: there are no pages or too many, or their bytes do not fit the runs.
        """
        self.write_bulk_from(record, sum(memoryview(buffer).nbytes for buffer in pages),
                             lambda: self._sink.write(*pages))

    def write_bulk_from(self, record: Pages | SharedPages | PagesSince, data_bytes: int,
                        write: Callable[[], object]) -> None:
        """Write a memory record, whose pages somebody else puts into the sink.

        Args:
            record: with its runs; ``data`` stays empty.
            data_bytes: of its pages.
            write: puts them there.

        Raises:
            ImageError: there are no pages or too many, or their bytes do not fit the runs.
        """
        n_pages = sum(run.pages for run in record.runs)
        if not 0 < n_pages <= PAGES_PER_RECORD_MAX or data_bytes != n_pages * PAGE_BYTES or record.data.nbytes:
            raise ImageError(f"{record.record_name}: {data_bytes} bytes for {n_pages} pages", offset=self.offset,
                             record=record.record_name)
        self._gather(record, record.encode(), data_bytes)
        self.flush()
        write()
        self.offset += data_bytes

    def finish(self) -> None:
        """Write TAIL; all of the image is in the sink then."""
        self.write(Tail())
        self.flush()

    def flush(self) -> None:
        """Hand what is gathered to the sink."""
        if self._gathered:
            gathered, self._gathered = self._gathered, bytearray()
            self._sink.write(gathered)

    def _gather(self, record: Record, payload: bytes, data_bytes: int) -> None:
        length = len(payload) + data_bytes
        if length > PAYLOAD_BYTES_MAX:
            raise ImageError(f"{record.record_name}: a payload of {length} bytes is too long", offset=self.offset,
                             record=record.record_name)
        self._gathered += FRAME.pack(record.record_type, length)
        self._gathered += payload
        self.offset += FRAME.size + len(payload)
