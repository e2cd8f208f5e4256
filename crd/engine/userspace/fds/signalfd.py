"""Signals read from a descriptor: signalfd(2).  It reads those of whoever reads; only its mask is its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.engine.userspace.fds.kind import Kind, Making
from crd.image.objects import SignalFd
from crd.native.syscall import NR, syscall

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.fds.table import FileTable
    from crd.image.codec import Record

_SFD_CLOEXEC = 0o2000000
_MASK_BYTES = 8


class SignalFds(Kind):
    """A SIGNAL_FD each."""

    def recognises(self, one: Description) -> bool:
        """By its link."""
        return one.link == "anon_inode:[signalfd]"

    def dump(self, found: Sequence[Description], table: FileTable) -> Iterator[Record]:
        """Note the mask."""
        del table
        for one in found:
            yield SignalFd(objref=one.objref, flags=one.flags, owner=one.owner,
                           mask=int(one.info.extra["sigmask"], 16))

    def make(self, making: Making) -> None:
        """Make it with its mask."""
        for record in making.wanted(SignalFd):
            fd = syscall(NR.SIGNALFD4, -1, record.mask.to_bytes(_MASK_BYTES, "little"), _MASK_BYTES, _SFD_CLOEXEC)
            making.add(record.objref, fd, record.flags)
