"""What differs in the memory of two images, by mapping."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from crd.image.profile import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from crd.image.inspection import MemoryEntry

    Compare = Callable[[int, int, int], int]
    """How many pages are others, of so many from a page of the first and one of the second image on."""

_NO_END = 1 << 64


class Run(NamedTuple):
    """Consecutive pages of an image: where they are in memory, how many, and which page of the stream is the first."""

    address: int
    pages: int
    first: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Where the pages of an image are: runs in ascending order, of processes by pid, of shared objects by objref."""

    private: Mapping[int, Iterable[Run]]
    shared: Mapping[int, Iterable[Run]]


class Area(NamedTuple):
    """A mapping."""

    start: int
    end: int
    flags: str
    path: str


@dataclass(slots=True, eq=False)
class MemoryChange:
    """A mapping of either image, or of both, and how its pages differ.

    Attributes:
        changed_pages: that both have, with other content.
        added_pages: that only the second has.
        removed_pages: that only the first has.
    """

    pid: int
    before: Area | None
    after: Area | None
    changed_pages: int = 0
    added_pages: int = 0
    removed_pages: int = 0

    @property
    def pages(self) -> int:
        """How many pages are not as they were."""
        return self.changed_pages + self.added_pages + self.removed_pages


class MemoryDifference:
    """Compares processes one by one, and then what is shared: each object once, where it is mapped first.

    Attributes:
        changes: every mapping.
        equal_pages: that both images have in the same place, with the same content.
    """

    def __init__(self, before: Memory, after: Memory, compare: Compare) -> None:
        """Compare two images."""
        self._before = before
        self._after = after
        self._compare = compare
        self._shared: list[tuple[int, int, MemoryChange]] = []
        self.changes: list[MemoryChange] = []
        self.equal_pages = 0

    def process(self, pids: tuple[int, int], before: Sequence[MemoryEntry], after: Sequence[MemoryEntry]) -> None:
        """Compare a process by its pid and mappings in each image, which ascend; 0 and none where it is not."""
        new = [MemoryChange(pids[1], None, _area(entry)) for entry in after]
        old = list(_heirs(pids[1] or pids[0], before, after, new))
        self.changes += dict.fromkeys([*new, *old])
        self._note_shared(zip(before, old, strict=True), zip(after, new, strict=True))
        theirs, ours = _Mappings(after, new), _Mappings(before, old)
        for address, pages, first, second in stretches(self._before.private.get(pids[0], ()),
                                                       self._after.private.get(pids[1], ())):
            done = 0
            while done < pages:
                at = address + done * PAGE_BYTES
                change, until = theirs.at(at)
                if change is None:
                    change, end = ours.at(at)
                    until = min(until, end)
                n = min(pages - done, max(1, (until - at) // PAGE_BYTES))
                self._count(change, n, first if first is None else first + done,
                            second if second is None else second + done)
                done += n

    def shared(self) -> None:
        """Compare what is shared, once all processes are."""
        ours: set[int] = {0}
        theirs: set[int] = {0}
        for old, new, change in sorted(self._shared, key=lambda pair: not (pair[0] and pair[1])):
            if (old and old in ours) or (new and new in theirs):
                continue
            ours.add(old)
            theirs.add(new)
            for _, pages, first, second in stretches(self._before.shared.get(old, ()),
                                                     self._after.shared.get(new, ())):
                self._count(change, pages, first, second)

    def _note_shared(self, before: Iterable[tuple[MemoryEntry, MemoryChange]],
                     after: Iterable[tuple[MemoryEntry, MemoryChange]]) -> None:
        """Note which objects are shared by the mappings of a process."""
        old = {change: entry.objref for entry, change in before if _is_shared(entry)}
        new = {change: entry.objref for entry, change in after if _is_shared(entry)}
        self._shared += [(old.get(change, 0), new.get(change, 0), change) for change in dict.fromkeys([*new, *old])]

    def _count(self, change: MemoryChange | None, pages: int, first: int | None, second: int | None) -> None:
        differing = pages
        if first is not None and second is not None:
            differing = self._compare(pages, first, second)
            self.equal_pages += pages - differing
        if change is None:
            return
        if first is None:
            change.added_pages += pages
        elif second is None:
            change.removed_pages += pages
        else:
            change.changed_pages += differing


class _Mappings:
    """What is known of mappings, by address."""

    def __init__(self, entries: Sequence[MemoryEntry], changes: Sequence[MemoryChange]) -> None:
        self._entries = entries
        self._changes = changes
        self._starts = [entry.start for entry in entries]

    def at(self, address: int) -> tuple[MemoryChange | None, int]:
        """Return the one that holds an address, None if none does, and up to which address that is so."""
        place = bisect_right(self._starts, address)
        if place and address < self._entries[place - 1].end:
            return self._changes[place - 1], self._entries[place - 1].end
        return None, self._starts[place] if place < len(self._starts) else _NO_END


def _heirs(pid: int, before: Sequence[MemoryEntry], after: Sequence[MemoryEntry],
           changes: Sequence[MemoryChange]) -> Iterator[MemoryChange]:
    """Yield for each mapping of the first image that of the second which it became, or one of its own."""
    ends = [entry.end for entry in after]
    for entry in before:
        place = bisect_right(ends, entry.start)
        heirs = [*takewhile(lambda later: after[later].start < entry.end, range(place, len(after)))]  # noqa: B023
        for later in heirs:
            changes[later].before = changes[later].before or _area(entry)
        yield changes[place] if heirs else MemoryChange(pid, _area(entry), None)


def stretches(before: Iterable[Run], after: Iterable[Run]) -> Iterator[tuple[int, int, int | None, int | None]]:
    """Yield address, number of pages, and the first of them in each image, None where it has none of them."""
    ours, theirs = iter(before), iter(after)
    one, other = next(ours, None), next(theirs, None)
    while one or other:
        if other is None or (one and one.address < other.address):
            assert one  # noqa: S101
            n = one.pages if other is None else min(one.pages, (other.address - one.address) // PAGE_BYTES)
            yield one.address, n, one.first, None
            one = _cut(one, n) or next(ours, None)
        elif one is None or other.address < one.address:
            n = other.pages if one is None else min(other.pages, (one.address - other.address) // PAGE_BYTES)
            yield other.address, n, None, other.first
            other = _cut(other, n) or next(theirs, None)
        else:
            n = min(one.pages, other.pages)
            yield one.address, n, one.first, other.first
            one, other = _cut(one, n) or next(ours, None), _cut(other, n) or next(theirs, None)


def _cut(run: Run, n: int) -> Run | None:
    return Run(run.address + n * PAGE_BYTES, run.pages - n, run.first + n) if n < run.pages else None


def _area(entry: MemoryEntry) -> Area:
    return Area(entry.start, entry.end, entry.flags, entry.path)


def _is_shared(entry: MemoryEntry) -> bool:
    return entry.flags.endswith("s") and entry.objref > 0
