"""What differs between two images: mappings by their pages, tasks, open files."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crd.image.difference import Difference, FileChange, OpenFile, Side, TaskChange, TaskState, difference
from crd.image.inspection import FileEntry, Inspection, MemoryEntry, TaskEntry
from crd.image.memory_difference import Area, Memory, MemoryChange, Run, stretches
from crd.image.profile import PAGE_BYTES

Content = dict[int, int]
"""What is in pages, by their place."""


class Image:
    """An image in the making; the content of each page of its stream is a number."""

    def __init__(self, root: int = 7) -> None:
        self.front = Inspection("crd", "", "little")
        self.stream: list[int] = []
        self.memory = Memory({}, {})
        self.root = root
        self.task(root)

    def task(self, pid: int, *tids: int, comm: str = "web") -> None:
        self.front.tasks += [TaskEntry(tid, 1, pid, comm if tid == pid else "worker") for tid in (pid, *tids)]

    def area(self, first: int, end: int, flags: str = "rw-p", path: str = "", objref: int = 0, pid: int = 0) -> None:
        self.front.memory.append(MemoryEntry(pid or self.root, first * PAGE_BYTES, end * PAGE_BYTES, flags, path,
                                             objref=objref))

    def pages(self, content: Content, pid: int = 0, objref: int = 0) -> None:
        runs: list[Run] = []
        for place, number in sorted(content.items()):
            if runs and runs[-1].address == (place - runs[-1].pages) * PAGE_BYTES:
                runs[-1] = runs[-1]._replace(pages=runs[-1].pages + 1)
            else:
                runs.append(Run(place * PAGE_BYTES, 1, len(self.stream)))
            self.stream.append(number)
        if objref:
            self.memory.shared[objref] = runs  # type: ignore[index]
        else:
            self.memory.private[pid or self.root] = runs  # type: ignore[index]

    @property
    def side(self) -> Side:
        return Side(self.front, self.root, self.memory)


def differ(before: Image, after: Image) -> Difference:
    def compare(n: int, first: int, second: int) -> int:
        ours, theirs = before.stream[first:first + n], after.stream[second:second + n]
        assert len(ours) == len(theirs) == n
        return sum(one != other for one, other in zip(ours, theirs, strict=True))

    return difference(before.side, after.side, compare)


def area(first: int, end: int, flags: str = "rw-p", path: str = "") -> Area:
    return Area(first * PAGE_BYTES, end * PAGE_BYTES, flags, path)


def counts(change: MemoryChange) -> tuple[int, int, int]:
    return change.changed_pages, change.added_pages, change.removed_pages


def test_pages_count_for_the_mapping_that_they_are_in() -> None:
    before, after = Image(), Image()
    before.area(10, 20, path="[heap]")
    after.area(10, 30, path="[heap]")
    for image in (before, after):
        image.area(40, 50, path="same")
        image.area(60, 70, "r-xp", "text")
    before.area(80, 90, path="left")
    after.area(90, 100, path="come")
    before.pages({10: 1, 11: 2, 12: 3, 13: 4, 45: 5, 80: 6, 81: 7})
    after.pages({10: 1, 11: 9, 13: 4, 25: 8, 26: 8, 45: 5, 95: 1})
    found = differ(before, after)
    assert [(change.before, change.after, counts(change)) for change in found.memory] == [
        (area(10, 20, path="[heap]"), area(10, 30, path="[heap]"), (1, 2, 1)),
        (area(80, 90, path="left"), None, (0, 0, 2)),
        (None, area(90, 100, path="come"), (0, 1, 0))]
    assert found.equal_pages == 3
    assert found.tasks == found.files == []


def test_a_mapping_that_was_split_and_one_that_was_cut_are_no_new_ones() -> None:
    before, after = Image(), Image()
    before.area(10, 30)
    for first, flags in ((10, "rw-p"), (15, "r--p"), (20, "rw-p")):
        after.area(first, first + 5, flags)
    before.pages(dict.fromkeys(range(10, 30), 1))
    after.pages(dict.fromkeys(range(10, 25), 1))
    assert [(change.before, change.after, counts(change)) for change in differ(before, after).memory] == [
        (area(10, 30), area(10, 15), (0, 0, 5)), (area(10, 30), area(15, 20, "r--p"), (0, 0, 0)),
        (area(10, 30), area(20, 25), (0, 0, 0))]


def test_what_is_shared_counts_once_and_under_any_number() -> None:
    before, after = Image(), Image()
    for image, objref in ((before, 3), (after, 5)):
        image.task(8)
        for pid in (7, 8):
            image.area(10, 20, "rw-s", "/dev/shm/x", objref, pid)
    after.area(30, 40, "rw-s", "/dev/shm/x", 5)
    before.pages({0: 1, 1: 2, 2: 3}, objref=3)
    after.pages({0: 1, 1: 9, 3: 4}, objref=5)
    found = differ(before, after)
    assert [(change.pid, change.after.start // PAGE_BYTES, counts(change)) for change in found.memory] == [
        (7, 10, (1, 1, 1)), (7, 30, (0, 0, 0))]
    assert found.equal_pages == 1


def test_tasks_and_threads() -> None:
    before, after = Image(), Image()
    before.task(8, 81, 82)
    after.task(8, 82, 83, 84, comm="db")
    before.task(9, 91)
    after.task(10)
    assert differ(before, after).tasks == [
        TaskChange(10, None, TaskState("web", 1), 0, 0),
        TaskChange(8, TaskState("web", 3), TaskState("db", 4), 1, 2),
        TaskChange(9, TaskState("web", 2), None, 1, 0)]


def test_a_restart_with_another_pid_is_the_same_process() -> None:
    before, after = Image(7), Image(77)
    for image in (before, after):
        image.area(10, 20)
        image.pages({10: 1, 11: image.root})
        image.front.files.append(FileEntry(image.root, 3, "/log", 1, image.root))
    found = differ(before, after)
    assert found.tasks == []
    assert [(change.pid, counts(change)) for change in found.memory] == [(77, (1, 0, 0))]
    assert found.files == [FileChange(77, 3, OpenFile("/log", 1, 7), OpenFile("/log", 1, 77))]


def test_open_files() -> None:
    before, after = Image(), Image()
    for fd, path in ((3, "/same"), (4, "/was"), (5, "/gone")):
        before.front.files.append(FileEntry(7, fd, path, 0, 0))
    for fd, path in ((3, "/same"), (4, "/is"), (6, "/new")):
        after.front.files.append(FileEntry(7, fd, path, 0, 0))
    assert differ(before, after).files == [
        FileChange(7, 4, OpenFile("/was", 0, 0), OpenFile("/is", 0, 0)),
        FileChange(7, 5, OpenFile("/gone", 0, 0), None), FileChange(7, 6, None, OpenFile("/new", 0, 0))]


CONTENTS = st.dictionaries(st.integers(0, 40), st.integers(0, 2))
AREAS = st.lists(st.integers(0, 41), max_size=12, unique=True).map(
    lambda places: list(zip(sorted(places)[::2], sorted(places)[1::2], strict=False)))


@given(CONTENTS, CONTENTS, AREAS, AREAS)
def test_any_two_memories_are_told_apart_page_by_page(one: Content, other: Content, ours: list[tuple[int, int]],
                                                      theirs: list[tuple[int, int]]) -> None:
    before, after = Image(), Image()
    for image, content, areas in ((before, one, ours), (after, other, theirs)):
        inside = {place for first, end in areas for place in range(first, end)}
        for place in content.keys() - inside:
            del content[place]
        image.pages(content)
        for first, end in areas:
            image.area(first, end)
    changed = {place for place in one.keys() & other.keys() if one[place] != other[place]}
    expected = changed, other.keys() - one.keys(), one.keys() - other.keys()
    found = differ(before, after)
    assert found.equal_pages == len(one.keys() & other.keys()) - len(changed)
    for kind, places in enumerate(expected):
        assert sum(counts(change)[kind] for change in found.memory) == len(places)
    for change in found.memory:
        if change.after:
            places = set(range(change.after.start // PAGE_BYTES, change.after.end // PAGE_BYTES))
            assert counts(change)[:2] == (len(changed & places), len(expected[1] & places))
    told = [address + PAGE_BYTES * page for address, pages, *_ in stretches(before.memory.private[7],
                                                                            after.memory.private[7])
            for page in range(pages)]
    assert told == [place * PAGE_BYTES for place in sorted(one.keys() | other.keys())]
