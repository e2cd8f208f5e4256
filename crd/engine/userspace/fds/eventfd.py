"""Event counters: eventfd(2)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crd.engine.userspace.fds.kind import Kind, Making
from crd.image.objects import EventFd

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.fds.table import FileTable
    from crd.image.codec import Record


class EventFds(Kind):
    """An EVENT_FD each: fdinfo tells all there is."""

    def recognises(self, one: Description) -> bool:
        """By its link."""
        return one.link == "anon_inode:[eventfd]"

    def dump(self, found: Sequence[Description], table: FileTable) -> Iterator[Record]:
        """Note the counter."""
        del table
        for one in found:
            yield EventFd(objref=one.objref, flags=one.flags, owner=one.owner,
                          count=int(one.info.extra["eventfd-count"], 16),
                          semaphore=int(one.info.extra["eventfd-semaphore"]))

    def make(self, making: Making) -> None:
        """Count up from 0."""
        for record in making.wanted(EventFd):
            fd = os.eventfd(0, os.EFD_CLOEXEC | (os.EFD_SEMAPHORE if record.semaphore else 0))
            making.add(record.objref, fd, record.flags)
            if record.count:
                os.eventfd_write(fd, record.count)
