"""The vdso in a core: images only say which one they were taken with, and where it was."""

from __future__ import annotations

from bisect import bisect
from typing import TYPE_CHECKING

from crd.image.profile import PAGE_BYTES, VMA_SHARED_MEMORY, PageRun, SharedPages, Vma
from crd.image.vdso import without_padding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.image.profile import MemoryLayout

OBJECT = 1 << 32
"""Number of the object that it is; those of images are smaller."""
_READ_EXECUTE = 5


def among(vmas: Sequence[Vma], layout: MemoryLayout) -> Sequence[Vma]:
    """Return the areas of a process, with that of its vdso if it has one."""
    start, end = layout.vdso_start, layout.vdso_start + layout.vdso_bytes
    at = bisect(vmas, start, key=lambda vma: vma.start)
    is_free = (at == 0 or vmas[at - 1].end <= start) and (at == len(vmas) or end <= vmas[at].start)
    if not start or not is_free:
        return vmas
    own = Vma(kind=VMA_SHARED_MEMORY, protection=_READ_EXECUTE, start=start, end=end, offset=0, objref=OBJECT, flags="",
              name="[vdso]")
    return [*vmas[:at], own, *vmas[at:]]


def pages(area: bytes) -> SharedPages:
    """Return what is in it, as a record of memory would say it."""
    image = without_padding(area)
    data = image + bytes(-len(image) % PAGE_BYTES)
    return SharedPages(objref=OBJECT, runs=[PageRun(address=0, pages=len(data) // PAGE_BYTES)], data=memoryview(data))
