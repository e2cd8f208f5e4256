"""Huge pages of hugetlbfs: which areas of them can be saved."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crd.errors import TargetError
from crd.target import procfs

if TYPE_CHECKING:
    from crd.target.model import MapEntry

ANONYMOUS = "/anon_hugepage (deleted)"
"""Of a file that the kernel makes for MAP_ANONYMOUS | MAP_HUGETLB."""
PAGE_BYTES = 2 << 20
_MEMFD = "/memfd:"


def hindrance(pid: int, entry: MapEntry) -> str:
    """Say why an area of huge pages cannot be saved; empty if it can."""
    if entry.path != ANONYMOUS and not entry.path.startswith(_MEMFD):
        return "uses huge pages of a file or segment of hugetlbfs"
    if entry.path != ANONYMOUS and not entry.shared:
        return "is a private copy of a memory file of huge pages"
    try:
        size = procfs.map_file_stat(pid, entry).st_blksize
    except TargetError:  # no CAP_CHECKPOINT_RESTORE, or it has ended, which others notice
        return "uses huge pages of a size that crd may not find out"
    return "" if size == PAGE_BYTES else f"uses huge pages of {size >> 20} MiB"


def is_of_another_size(pid: int, fd: int) -> bool:
    """Whether a memory file is of huge pages that cannot be saved."""
    try:
        size = os.statvfs(procfs.PROC / str(pid) / "fd" / str(fd)).f_bsize
    except OSError:  # closed meanwhile
        return False
    return size not in {os.sysconf("SC_PAGESIZE"), PAGE_BYTES}
