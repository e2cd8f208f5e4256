"""Which pages a process writes, noted by the kernel: asynchronous write protection by a userfaultfd(2) (6.7).

The process need not have the descriptor, nor know of it: whoever holds it lets the notes live, and with its last
holder they end, without a trace in the process.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from crd.errors import NativeError
from crd.native.check import call
from crd.native.ffi import ffi, lib
from crd.native.inject import Call
from crd.native.syscall import NR, pidfd_getfd

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crd.native.inject import Injector
    from crd.native.memory import Run
    from crd.native.pagemap import PageMap
    from crd.native.tracee import Registers

FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | 1
"""UFFD_USER_MODE_ONLY: needs no privilege of the process, and serves, since nobody waits for its faults."""

_CAPACITY = 16384
_new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)
_LISTS = ("written", "swapped", "others", "others_swapped")


def begin(userfaultfd: int) -> None:
    """Make a userfaultfd one that notes writes.

    Raises:
        NativeError: the kernel cannot (EINVAL: before 6.7).
    """
    call(lib.crd_userfaultfd_begin, userfaultfd)


def borrow(stubs: Injector, pid: int, original: Registers, free_fd: int) -> int:
    """Have a stopped process make a userfaultfd for its memory, take that, and leave none in the process.

    Args:
        stubs: for system calls in it.
        pid: of it.
        original: registers of its leader.
        free_fd: the lowest number of a descriptor that it does not use, which so will be that of the userfaultfd.

    Raises:
        NativeError: it can have none, or the kernel cannot note writes with it (EINVAL).
        InjectionInterrupted, FeatureMissing, TraceeGone: see ``Injector.script``.
    """
    made, ours = _make(stubs, pid, original, free_fd)
    if made < 0:
        raise NativeError(f"the target can have no userfaultfd: {os.strerror(-made)}", operation="userfaultfd",
                          errno=-made, tid=pid)
    if ours < 0:  # it has other descriptors than we were told: close the right one
        stubs.plain(pid, original, [Call(NR.CLOSE, (made,))])
        raise NativeError(f"descriptor {free_fd} was not free", operation="userfaultfd", errno=errno.EBUSY, tid=pid)
    try:
        begin(ours)
    except NativeError:
        os.close(ours)
        raise
    return ours


def _make(stubs: Injector, pid: int, original: Registers, free_fd: int) -> tuple[int, int]:
    """Return the number of the descriptor in the process, negative errno for none, and of ours."""
    pidfd, ours = os.pidfd_open(pid), -1
    try:
        steps = stubs.steps(pid, original, [Call(NR.USERFAULTFD, (FLAGS,)), Call(NR.CLOSE, (free_fd,))])
        made = next(steps)
        if made == free_fd:
            ours = pidfd_getfd(pidfd, made)
        list(steps)
    except BaseException:
        if ours >= 0:
            os.close(ours)
        raise
    finally:
        os.close(pidfd)
    return made, ours


def watch(userfaultfd: int, area: Run) -> bool:
    """Have writes to an area of private anonymous memory noted, and return whether they are.

    They are not if it was unmapped meanwhile, is somebody else's userfaultfd's, or the memory is gone by an execve(2).
    """
    with suppress(NativeError):
        call(lib.crd_userfaultfd_watch, userfaultfd, ffi.new("struct crd_run *", area))
        return True
    return False


@dataclass(slots=True)
class Found:
    """What pages some areas have; looked at only when there is time.

    Attributes:
        unknown: those areas of which nothing is noted, or not of all.
        guards: guard regions (madvise(2)).
    """

    unknown: set[Run] = field(default_factory=set)
    guards: list[Run] = field(default_factory=list)
    _chunks: list[Any] = field(default_factory=list)
    _memory: list[Any] = field(default_factory=list)
    _readable: dict[str, list[Run]] = field(default_factory=dict)

    def changed(self) -> list[Run]:
        """Return the runs of pages that are not as they were, in ascending order; some may hold nothing now."""
        return sorted(chain(self._runs("written"), self._runs("swapped")))

    def written(self) -> list[Run]:
        """Return the runs of pages that are not as they were and can be read, in ascending order."""
        return sorted(chain(self._runs("written"), self._readable["swapped"]))

    def others(self) -> list[Run]:
        """Return the runs of pages that were not written and can be read, in ascending order."""
        return sorted(chain(self._runs("others"), self._readable["others_swapped"]))

    def _resolve(self, pagemap: PageMap) -> None:
        """Tell pages that are swapped out from guard pages, while they are what they were found as."""
        for name in ("swapped", "others_swapped"):
            self._readable[name] = [(run.start, run.end - run.start) for start, length in self._runs(name)
                                    for run in pagemap.own_pages(start, start + length)]
            self.guards += [(run.start, run.end - run.start) for start, length in self._runs(name)
                            for run in pagemap.guard_pages(start, start + length)]

    def written_bytes(self) -> int:
        """Return how much was written, be it swapped out now."""
        return sum(chunk.written.bytes + chunk.swapped.bytes for chunk in self._chunks)

    def _runs(self, name: str) -> Iterator[Run]:
        for chunk in self._chunks:
            runs = getattr(chunk, name)
            for run in runs.runs[0:runs.n]:
                yield run.address, run.length


def find(pagemap: PageMap, areas: Sequence[Run], *, noted: bool) -> Found:
    """Find the pages of areas that hold anything of the process's own.

    Args:
        pagemap: of the process.
        areas: of it.
        noted: tell those that were written since the last call from the others, and begin anew, by one look at each;
            only in what is watched (``Found.unknown``).  Otherwise all count as written.

    Raises:
        NativeError: the kernel has no PAGEMAP_SCAN.
    """
    found = Found()
    wanted, errors = ffi.new("struct crd_run[]", list(areas)), ffi.new("int[]", max(1, len(areas)))
    area, address = ffi.new("size_t *"), ffi.new("uint64_t *")
    while area[0] < len(areas):
        pages = ffi.new("struct crd_pages *", {"capacity": _CAPACITY})
        for name in _LISTS:
            runs = _new_uncleared("struct crd_run[]", _CAPACITY)
            getattr(pages, name).runs = runs
            found._memory.append(runs)
        found._chunks.append(pages)
        call(lib.crd_pages_find, pagemap.fd, noted, wanted, len(areas), errors, pages, area, address)
    found._resolve(pagemap)
    found.unknown = {run for run, error in zip(areas, errors[0:len(areas)], strict=True) if error}
    return found
