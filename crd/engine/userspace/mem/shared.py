"""What no snapshot holds, copied while all who have it are stopped: shared memory, files without a name."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.errors import EngineError
from crd.image.profile import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.engine.userspace.mem.runs import Run

_MADV_POPULATE_WRITE = 23


@dataclass(frozen=True, slots=True)
class Copied:
    """A shared object: its size, runs (offset, bytes) of whole pages without holes, and their content."""

    bytes: int
    runs: list[Run]
    content: memoryview


def copy_shared(path: str) -> Copied:
    """Copy what a shared object holds, by its path in /proc/PID/map_files; raises as ``room``."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return copy_content(fd)
    finally:
        os.close(fd)


def copy_content(fd: int, flags: int = 0) -> Copied:
    """Copy what a file holds that we have open for reading, by preadv2(2) with flags; raises as ``room``."""
    size = os.fstat(fd).st_size
    runs = list(_data(fd, size))
    content = room(sum(length for _, length in runs))
    at = 0
    for start, length in runs:
        end = at + min(length, size - start)  # what is left of the last page is zero
        while at < end and (n := os.preadv(fd, [content[at:end]], start, flags)):
            at, start = at + n, start + n  # noqa: PLW2901  (one call moves no more than 2 GiB)
        at += -at % PAGE_BYTES
    return Copied(size, runs, content)


def _data(fd: int, size: int) -> Iterator[Run]:
    """Find what is no hole, in whole pages."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:
            return  # ENXIO: only a hole is left
        end = os.lseek(fd, start, os.SEEK_HOLE)
        end += -end % PAGE_BYTES
        yield start, end - start


class Reserve:
    """Memory of ours whose pages are there already: in a stop each one would cost."""

    def __init__(self, length: int = 0) -> None:
        """Have so many bytes; raises as ``room``."""
        self._left = room(length, at_once=True)

    def take(self, length: int) -> memoryview:
        """Return so many of them, or of others if there are not as many left; raises as ``room``."""
        if length > self._left.nbytes:
            return room(length)
        taken, self._left = self._left[:length], self._left[length:]
        return taken


def room(length: int, *, at_once: bool = False) -> memoryview:
    """Return memory of ours, whose pages come at once or as they are written: huge ones where the kernel has them."""
    if not length:
        return memoryview(b"")
    try:
        room = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # EINVAL: a kernel without either
            room.madvise(mmap.MADV_HUGEPAGE)
            if at_once:
                room.madvise(_MADV_POPULATE_WRITE)  # 5.14
        return memoryview(room)
    except OSError as error:
        raise EngineError(f"copying {length >> 20} MiB of the target's memory takes as much of ours: {error.strerror}",
                          hint="Give crd more memory.") from error
