"""Memory told by what has changed in it: between an engine and an archive, and never part of an image.

An engine that knows which pages a process has written since an earlier image, and is told that the archive has that
image, sends PAGES_SINCE instead of PAGES.  The archive makes PAGES of it again, so that what it keeps is a whole image.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from crd.image.codec import Record
from crd.image.fields import NO_DATA, U32, Bulk, Items
from crd.image.profile import PAGE_BYTES, PAGES_PER_RECORD_MAX, PageRun

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RUNS_PER_RECORD_MAX = 255
"""With as many runs a PAGES record has less than a page before its pages, so that archives find these."""

KEPT_RUNS_MAX = RUNS_PER_RECORD_MAX + 1


class PagesSince(Record, type=0x435200FF):
    """Memory of one process: runs that are as they were, and runs with their bytes; both ascend, and never overlap.

    Of the former those pages hold something that held something then.
    """

    pid: U32
    kept: Items[PageRun]
    runs: Items[PageRun]
    data: Bulk = NO_DATA


def records(pid: int, kept: Sequence[tuple[int, int]], new: Sequence[tuple[int, int]]) -> Iterator[PagesSince]:
    """Cut runs into records.

    Args:
        pid: of the process.
        kept: address and bytes of runs that are as they were.
        new: the same of runs that have to be told.  None of either touches another of its kind.

    Yields:
        Records without their data, in ascending order.
    """
    before: list[PageRun] = []
    runs: list[PageRun] = []
    room = PAGES_PER_RECORD_MAX
    for address, length, is_new in sorted(chain(((*run, False) for run in kept), ((*run, True) for run in new))):
        at, left = address, length // PAGE_BYTES
        while left:
            pages = min(left, room) if is_new else left
            (runs if is_new else before).append(PageRun(address=at, pages=pages))
            at, left, room = at + pages * PAGE_BYTES, left - pages, room - pages if is_new else room
            if not room or len(runs) == RUNS_PER_RECORD_MAX or len(before) == KEPT_RUNS_MAX:
                yield PagesSince(pid=pid, kept=before, runs=runs)
                before, runs, room = [], [], PAGES_PER_RECORD_MAX
    if before or runs:
        yield PagesSince(pid=pid, kept=before, runs=runs)
