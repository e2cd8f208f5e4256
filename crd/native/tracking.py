"""Which pages a process writes, noted by the kernel: asynchronous write protection by a userfaultfd(2) (6.7).

The process need not have the descriptor, nor know of it: whoever holds it lets the notes live, and with its last
holder they end, without a trace in the process.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from crd.errors import NativeError
from crd.native.check import call
from crd.native.ffi import ffi, lib
from crd.native.inject import Call
from crd.native.pagemap import FoundRuns, look_at
from crd.native.syscall import NR, pidfd_getfd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.native.inject import Injector
    from crd.native.memory import Run
    from crd.native.pagemap import PageMap
    from crd.native.tracee import Registers

FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | 1
"""UFFD_USER_MODE_ONLY: needs no privilege of the process, and serves, since nobody waits for its faults."""



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


def find_changed(pagemap: PageMap, areas: Sequence[Run], *, dense: bool) -> tuple[FoundRuns, list[Run]]:
    """Find what was written since the last look, and begin anew, by one look at each page.

    Args:
        pagemap: of the process.
        areas: to look at; the first look at one finds all that it holds.
        dense: it is quicker by far to find also what was given back since, but only where there are page tables: if
            that of a page was given back with it, the kernel tells it or not (see ``PageMap.gone``), and may make one.

    Returns:
        The runs that have changed, and the areas of which nothing is noted, or not of all.

    Raises:
        NativeError: the kernel has no PAGEMAP_SCAN.
    """
    changed, errors = FoundRuns(), ffi.new("int[]", max(1, len(areas)))
    look_at(areas, lambda *where: call(lib.crd_pages_changed, pagemap.fd, dense, *where, errors, changed.room()))
    return changed, [area for area, error in zip(areas, errors[0:len(areas)], strict=True) if error]
