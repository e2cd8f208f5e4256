"""What records of memory must be after those before them; see ``checks``."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from crd.image.checks import check, need, need_current
from crd.image.objects import FileContent, SharedMemory, UnnamedFile
from crd.image.profile import PAGE_BYTES, GuardRegions, PageRun, Pages, SharedPages

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from crd.image.checks import ImageState


@check.register(GuardRegions)
def _check_guard_regions(record: GuardRegions, image: ImageState) -> None:
    need_current(record.pid, image)
    process = image.current
    for start, end in _ascending(record.runs, process.last_guard_end):
        need(_is_inside(start, end, process.areas),
             f"has a guard from 0x{start:x} to 0x{end:x} outside the memory of {record.pid}")
        process.last_guard_end = end


@check.register(Pages)
def _check_pages(record: Pages, image: ImageState) -> None:
    need(record.pid in image.processes, f"is of process {record.pid}, which is not in the image")
    process = image.processes[record.pid]
    for start, end in _ascending(record.runs, process.last_page_end):
        need(_is_inside(start, end, process.memory),
             f"has pages from 0x{start:x} to 0x{end:x} outside the private memory of {record.pid}")
        process.last_page_end = end


@check.register(SharedPages)
def _check_shared_pages(record: SharedPages, image: ImageState) -> None:
    image.need_object(record.objref, SharedMemory, UnnamedFile, FileContent)
    need(record.objref in image.shared, f"is of object {record.objref}, which is a directory or was not saved")
    n_bytes, last_end = image.shared[record.objref]
    for start, end in _ascending(record.runs, last_end):
        need(end <= n_bytes, f"has pages from 0x{start:x} to 0x{end:x}, behind the end of object {record.objref}")
        image.shared[record.objref] = (n_bytes, end)


def _is_inside(start: int, end: int, areas: Sequence[tuple[int, int]]) -> bool:
    index = bisect_right(areas, start, key=lambda area: area[0]) - 1
    return index >= 0 and end <= areas[index][1]


def _ascending(runs: Sequence[PageRun], last_end: int) -> Iterable[tuple[int, int]]:
    """Yield the (start, end) of runs that each begin at or after the end of the one before."""
    for run in runs:
        need(run.pages and run.address % PAGE_BYTES == 0, f"has a run of {run.pages} pages at 0x{run.address:x}")
        need(run.address >= last_end, f"has a run at 0x{run.address:x}, before the end of the one before it")
        last_end = run.address + run.pages * PAGE_BYTES
        yield run.address, last_end
