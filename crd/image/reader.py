"""Reads an image of crd's profile, front to back, in bounded memory."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from crd.errors import ImageVersionUnsupported
from crd.image import objects, profile
from crd.image.codec import Record, corrupt
from crd.image.framing import FrameReader, Source
from crd.image.header import read_header
from crd.image.profile import (
    PAGE_BYTES,
    PAGES_PER_RECORD_MAX,
    PROFILE_VERSION,
    Pages,
    Profile,
    SharedPages,
)
from crd.image.records import MAGIC_TAIL, TASK_COMM_BYTES, HeadArch, Numbering, String, Tail, Task, terminated

if TYPE_CHECKING:
    from collections.abc import Iterator

PROFILE_RECORDS: dict[int, type[Record]] = {
    kind.record_type: kind
    for kind in [HeadArch, String, Task, Tail, *vars(objects).values(), *vars(profile).values()]
    if isinstance(kind, type) and issubclass(kind, Record) and kind.record_type
}
"""Every record that may follow the header, by number."""


class ImageReader:
    """The records of one image, each checked by itself; ``verify.verified`` checks them together.

    Nothing behind the tail is read.

    Attributes:
        header: who wrote the image.
        offset: where the record last read starts.
    """

    def __init__(self, source: Source) -> None:
        """Read the header.

        Raises:
            ImageError: there is none that crd's profile can have; as for v14 the details carry ``errno``.
        """
        self._frames = FrameReader(source)
        self.header, numbering = read_header(self._frames)
        if numbering is not Numbering.FULL_SERIES:
            raise ImageVersionUnsupported("the image was written by a Linux-CR kernel, not by crd",
                                          errno=errno.EINVAL, hint="crd inspect shows what it holds.")

    @property
    def offset(self) -> int:
        """Where the record last read starts."""
        return self._frames.start

    @property
    def bytes_read(self) -> int:
        """How much of the stream has been read."""
        return self._frames.offset

    def __iter__(self) -> Iterator[Record]:
        """Yield the records behind the header, without the tail; the data of a bulk record last until the next.

        Raises:
            ImageCorrupt: a record is damaged, unknown or too long.
            ImageTruncated: the stream ends before the tail.
            ImageVersionUnsupported: a later version of crd wrote the image.
        """
        while not isinstance(record := self._next(), Tail):
            yield record
        if record.magic != MAGIC_TAIL:
            raise corrupt(f"has magic 0x{record.magic:016x}", self.offset, Tail.record_name)

    def _next(self) -> Record:
        record_type, length = self._frames.frame()
        kind = PROFILE_RECORDS.get(record_type)
        if kind is None:
            raise corrupt("is of no known type", self.offset, f"RECORD 0x{record_type:x}")
        payload = self._frames.payload(length, kind.record_name)
        if kind is Profile:
            _check_version(payload, self.offset)
        record = kind.decode(terminated(payload) if kind is String else payload, self.offset)
        if isinstance(record, Pages | SharedPages):
            n_pages = sum(run.pages for run in record.runs)
            if not 0 < n_pages <= PAGES_PER_RECORD_MAX or record.data.nbytes != n_pages * PAGE_BYTES:
                raise corrupt(f"has {record.data.nbytes} bytes for {n_pages} pages", self.offset, kind.record_name)
        if isinstance(record, Task) and record.comm_bytes > TASK_COMM_BYTES:
            raise corrupt(f"has a name of {record.comm_bytes} bytes", self.offset, kind.record_name)
        return record


def _check_version(payload: memoryview, offset: int) -> None:
    """The version is the first field of PROFILE in every version."""
    if len(payload) >= 4 and (version := struct.unpack_from("<I", payload)[0]) != PROFILE_VERSION:
        raise ImageVersionUnsupported(f"PROFILE at offset {offset} has version {version} of crd's profile, not "
                                      f"{PROFILE_VERSION}", hint="It takes a crd of another version.", offset=offset,
                                      record=Profile.record_name, version=version, errno=errno.EINVAL)
