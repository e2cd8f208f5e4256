"""Huge pages of hugetlbfs: areas of MAP_HUGETLB (mmap(2)), memory files of MFD_HUGETLB (memfd_create(2)).

Private ones are copied in the stop, and inherited by no child of a restart: if there is none left for a page that is
written after a fork, the kernel ends a process that touches it (SIGBUS), and that could be the target.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING

from crd.errors import RestartUnsupported
from crd.image.objects import UNNAMED_HUGE, SharedMemory, UnnamedFile
from crd.image.profile import HUGE_PAGE_BYTES, VMA_ANONYMOUS
from crd.target.huge_pages import ANONYMOUS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from crd.engine.userspace.mem.runs import Run
    from crd.engine.userspace.plan import Plan
    from crd.image.profile import Vma
    from crd.target.procfs import MapEntry

_SIZE = 21 << 26
"""The logarithm of the size, as mmap(2) and memfd_create(2) want it."""
MAP_FLAGS = 0x40000 | _SIZE
MFD_FLAGS = 0x4 | _SIZE
_POOL = Path(f"/sys/kernel/mm/hugepages/hugepages-{HUGE_PAGE_BYTES >> 10}kB")


def is_anonymous(entry: MapEntry) -> bool:
    """Whether an area is of huge pages and of no file that anybody could open."""
    return entry.path == ANONYMOUS


def has(vma: Vma) -> bool:
    """Whether an area is of huge pages."""
    return "ht" in vma.flags.split()


def why_copy(entries: Iterable[MapEntry]) -> str:
    """Say why a process with these areas must not be forked, if it must not."""
    if any(is_anonymous(entry) and not entry.shared for entry in entries):
        return "it has huge pages of its own, of which there may be none left for a snapshot child"
    return ""


def check(plans: Sequence[Plan]) -> None:
    """Make sure that there are as many huge pages as will be asked for.

    Raises:
        RestartUnsupported: there are not.
    """
    areas = [vma for plan in plans for vma in plan.vmas if has(vma) and "nr" not in vma.flags.split()]
    shared = {vma.objref for vma in areas}
    wanted = (sum(vma.end - vma.start for vma in areas if vma.kind == VMA_ANONYMOUS)
              + sum(record.bytes for record in plans[0].of(SharedMemory) if record.objref in shared)
              + sum(record.size for record in plans[0].of(UnnamedFile) if record.kind == UNNAMED_HUGE)
              ) // HUGE_PAGE_BYTES
    if wanted > (there := _available()):
        raise RestartUnsupported(
            f"{wanted} huge pages of {HUGE_PAGE_BYTES >> 20} MiB are needed, and {there} are to be had",
            hint=f"sysctl vm.nr_hugepages={_read('nr_hugepages') + wanted - there} makes more of them, if it can.")


def _available() -> int:
    beyond = _read("nr_overcommit_hugepages") - _read("surplus_hugepages")
    return _read("free_hugepages") - _read("resv_hugepages") + max(0, beyond)


def _read(name: str) -> int:
    try:
        return int((_POOL / name).read_text())
    except FileNotFoundError:  # a kernel, or a processor, without them
        return 0


def write_file(fd: int, runs: Sequence[Run], data: memoryview) -> None:
    """Write pages into a memory file of huge pages, which has to be mapped for that; raises OSError."""
    at = 0
    for start, length in runs:
        base = start & -HUGE_PAGE_BYTES
        end = -(-(start + length) // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        with mmap.mmap(fd, end - base, offset=base) as mapped:
            mapped[start - base:start - base + length] = data[at:at + length]
        at += length
