"""The header of an image: which kernel wrote it, when, where."""

from __future__ import annotations

import errno
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crd.errors import ImageError, ImageVersionUnsupported
from crd.image.codec import corrupt
from crd.image.records import CONTEXT_CHECKPOINT, MAGIC_HEAD, UTS_BYTES, Buffer, Head, Numbering

if TYPE_CHECKING:
    from crd.image.framing import FrameReader

HEADER_REVISION = 3
"""CR_VERSION of a complete patch series; crd's own version is in the PROFILE record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """HEAD and its three BUFFER records.

    Attributes:
        major, minor, patch: version of the kernel, from its release.
        rev: revision of the format.
        flags: CONTEXT_CHECKPOINT.
        time: seconds since the epoch.
        release, version, machine: as uname(2) has them, up to 64 bytes each.
    """

    major: int
    minor: int
    patch: int
    release: str
    version: str
    machine: str
    time: int
    rev: int = HEADER_REVISION
    flags: int = CONTEXT_CHECKPOINT
    magic: int = MAGIC_HEAD

    @property
    def kernel(self) -> str:
        """``6.18.0``."""
        return f"{self.major}.{self.minor}.{self.patch}"

    def to_json(self) -> dict[str, Any]:
        """Return the header as programs see it: ``header`` of an image in ``io.crd.varlink``."""
        return {"magic": f"0x{self.magic:016x}", "kernel": self.kernel, "rev": self.rev, "flags": self.flags,
                "time": self.time, "release": self.release, "version": self.version, "machine": self.machine}

    def to_records(self) -> tuple[Head, Buffer, Buffer, Buffer]:
        """Return the records that open an image.

        Raises:
            ImageError: one of the texts is longer than 64 bytes.
        """
        head = Head(major=self.major, minor=self.minor, patch=self.patch, rev=self.rev, time=self.time,
                    flags=self.flags, magic=self.magic)
        return head, _uts_buffer(self.release), _uts_buffer(self.version), _uts_buffer(self.machine)


def current_header(flags: int = 0) -> Header:
    """Return the header of an image that is taken here and now.

    Args:
        flags: of the call; the checkpoint bit is added.
    """
    uname = os.uname()
    numbers = [min(int(number), 0xFFFF) for number in re.findall(r"\d+", uname.release)[:3]]
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    return Header(major=major, minor=minor, patch=patch, flags=flags | CONTEXT_CHECKPOINT, time=int(time.time()),
                  release=uname.release, version=uname.version, machine=uname.machine)


def read_header(frames: FrameReader) -> tuple[Header, Numbering]:
    """Read HEAD and its BUFFERs by the rules of v14-rc2 (spec section 5.3), little-endian only.

    Returns:
        The header, and the numbering that the first BUFFER tells.

    Raises:
        ImageError: the stream does not begin with a header (details: ``errno``).
    """
    head = _read_head(frames)
    numbering: Numbering | None = None
    texts = []
    for _ in range(3):
        record_type, length = frames.frame()
        if numbering is None and record_type in {kind.value for kind in Numbering}:
            numbering = Numbering(record_type)
        data = frames.payload(length, Buffer.record_name, UTS_BYTES)
        if numbering is None or record_type != numbering.value or length != UTS_BYTES:
            raise corrupt(f"has type {record_type} and {length} bytes where a BUFFER of {UTS_BYTES} must be",
                          frames.start, Buffer.record_name)
        texts.append(data.tobytes().partition(b"\0")[0].decode("utf-8", "surrogateescape"))
    assert numbering is not None  # noqa: S101
    release, version, machine = texts
    return Header(major=head.major, minor=head.minor, patch=head.patch, rev=head.rev, flags=head.flags,
                  time=head.time, release=release, version=version, machine=machine), numbering


def _read_head(frames: FrameReader) -> Head:
    record_type, length = frames.frame()
    if record_type != Head.record_type or length != 40:
        raise ImageVersionUnsupported(
            "this is no image of crd: it does not begin with a v14 HEAD record", record=Head.record_name,
            errno=errno.EINVAL,
            hint="crd restarts its own images only; crd inspect recognises those of Linux-CR kernels.")
    head = Head.decode(frames.payload(length, Head.record_name), frames.start)
    if head.magic != MAGIC_HEAD:
        raise corrupt(f"has magic 0x{head.magic:016x}", frames.start, Head.record_name)
    if head.flags & ~CONTEXT_CHECKPOINT:
        raise corrupt(f"has flags 0x{head.flags:x}", frames.start, Head.record_name)
    if {head.release_bytes, head.version_bytes, head.machine_bytes} != {UTS_BYTES}:
        raise corrupt("has uts lengths other than 65", frames.start, Head.record_name)
    return head


def _uts_buffer(text: str) -> Buffer:
    data = text.encode("utf-8", "surrogateescape")
    if len(data) >= UTS_BYTES or b"\0" in data:
        raise ImageError(f"{text!r} does not fit a BUFFER of {UTS_BYTES} bytes", record=Buffer.record_name)
    return Buffer(data=data.ljust(UTS_BYTES, b"\0"))
