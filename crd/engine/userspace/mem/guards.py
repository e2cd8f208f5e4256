"""Guard regions (MADV_GUARD_INSTALL of madvise(2), Linux 6.13): pages inside an area that must not be touched.

Those of private anonymous memory are in a snapshot child, too.  A fork may leave out others, which hardly ever change:
they are found before the stop.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from crd.engine.userspace.mem.layout import is_kernel_area, kind
from crd.engine.userspace.mem.runs import joined
from crd.errors import RestartUnsupported
from crd.image.profile import PAGE_BYTES, VMA_ANONYMOUS, GuardRegions, PageRun
from crd.native.pagemap import PageMap
from crd.native.syscall import NR

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from crd.engine.userspace.mem.runs import Run
    from crd.engine.userspace.plan import Plan
    from crd.engine.userspace.vessel import Vessel
    from crd.target.procfs import MapEntry

_INSTALL = 102  # MADV_GUARD_INSTALL
_RUNS_PER_RECORD = 4096


def of_private_memory(pid: int, entries: Iterable[MapEntry]) -> list[Run]:
    """Find those in areas of private anonymous memory."""
    return _find(pid, (entry for entry in entries if kind(entry) == VMA_ANONYMOUS and not is_kernel_area(entry)))


def of_files(pid: int, entries: Iterable[MapEntry]) -> list[Run]:
    """Find those in all other areas."""
    return _find(pid, (entry for entry in entries if kind(entry) != VMA_ANONYMOUS))


def _find(pid: int, entries: Iterable[MapEntry]) -> list[Run]:
    with PageMap(pid) as pagemap:
        return pagemap.own_and_guard_pages(joined((entry.start, entry.end - entry.start) for entry in entries))[1]


def records(pid: int, runs: Sequence[Run]) -> Iterator[GuardRegions]:
    """Yield the records of a process."""
    for at in range(0, len(runs), _RUNS_PER_RECORD):
        yield GuardRegions(pid=pid, runs=[PageRun(address=start, pages=length // PAGE_BYTES)
                                          for start, length in runs[at:at + _RUNS_PER_RECORD]])


def check(plans: Sequence[Plan]) -> None:
    """Make sure that guard regions can be had; raises RestartUnsupported."""
    if not any(plan.of(GuardRegions) for plan in plans):
        return
    try:
        with mmap.mmap(-1, PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
            page.madvise(_INSTALL)
    except OSError as error:
        raise RestartUnsupported("the image has guard regions in its memory (madvise(2)), which this kernel has not",
                                 hint="Restart it on Linux 6.13 or newer.") from error


def restart(plan: Plan, vessel: Vessel) -> None:
    """Install them again, once the memory is filled and has been inherited."""
    for record in plan.of(GuardRegions):
        for run in record.runs:
            vessel.batch.call(NR.MADVISE, run.address, run.pages * PAGE_BYTES, _INSTALL,
                              what=f"guarding {run.address:#x}")
            vessel.flush()
