"""Rules of FORMAT.md that several records make together: which there are, how many, and in which order."""

from __future__ import annotations

import io

import pytest

from crd.errors import ImageCorrupt
from crd.image.framing import FRAME
from crd.image.objects import BETWEEN, OBJECTS, Pipe
from crd.image.profile import (
    PAGE_BYTES,
    FileDescriptor,
    GuardRegions,
    IntervalTimer,
    MemoryLayout,
    PageRun,
    PosixTimer,
    Process,
    Profile,
    ResourceLimit,
    Served,
    Sharing,
    SignalActions,
    Thread,
    ThreadPolicy,
    Vma,
    Zombie,
)
from crd.image.reader import ImageReader
from crd.image.records import HeadArch, String, Tail, Task
from crd.image.verify import verified
from tests.support.builders import (
    MEMORY_START,
    PID,
    make_image,
    make_pages,
    make_profile,
    make_records,
    make_tree_records,
    make_zombie,
    write_image,
)
from tests.support.verifying import changed, refused, verify, with_second_process


def test_the_sample_is_valid():
    assert len(list(verified(ImageReader(io.BytesIO(make_image()))))) == len(make_records())


def test_two_processes_are_valid():
    verify(with_second_process())


def test_the_error_tells_record_and_offset():
    image = write_image(changed(Process, umask=0o1000))
    offset = image.index(FRAME.pack(Process.record_type, 0)[:4])
    error = refused(changed(Process, umask=0o1000))
    assert (error.offset, error.record) == (offset, "PROCESS")


def test_records_before_the_broken_one_are_yielded():
    records = changed(Vma, 2, kind=9)
    broken = next(index for index, record in enumerate(records) if isinstance(record, Vma) and record.kind == 9)
    stream = verified(ImageReader(io.BytesIO(write_image(records))))
    assert [next(stream).record_name for _ in range(broken)] == [record.record_name for record in records[:broken]]
    with pytest.raises(ImageCorrupt, match="unknown kind 9"):
        next(stream)


@pytest.mark.parametrize("kind", [HeadArch, Profile, Task, String, Process, MemoryLayout, SignalActions])
def test_a_required_record_may_not_be_missing(kind):
    assert "may not follow" in refused([record for record in make_records() if type(record) is not kind]).message


def test_no_records_at_all():
    error = refused([])
    assert (error.record, error.offset) == (Tail.record_name, 267)


def test_order_of_records_matters():
    """Every two neighbours of different kinds, exchanged, are refused: but objects, and what may stand alone."""
    records = make_records()
    free = {*OBJECTS, *BETWEEN}
    for index in range(len(records) - 1):
        first, second = records[index], records[index + 1]
        if type(first) is type(second) or {type(first), type(second)} <= free:
            continue
        refused([*records[:index], second, first, *records[index + 2:]])


def test_a_process_without_threads():
    assert refused([record for record in make_records() if not isinstance(record, Thread)])


def test_too_few_processes():
    assert "ends 1 processes" in refused(changed(Profile, processes=2)).message


def test_too_many_processes():
    records = with_second_process()
    records[1] = make_profile(processes=1, threads=3)
    assert "one more than PROFILE counts" in refused(records).message


def test_too_many_threads():
    assert "one more than PROFILE counts" in refused(changed(Profile, threads=1)).message


@pytest.mark.parametrize(("values", "reason"), [
    ({"parent_pid": 1}, "not before it"), ({"pid": PID}, "taken"), ({"pid": PID + 1}, "taken"),
])
def test_second_process(values, reason):
    records = with_second_process()
    index = max(index for index, record in enumerate(records) if isinstance(record, Process))
    for name, value in values.items():
        setattr(records[index], name, value)
    assert reason in refused(records).message


def test_pipe_data_must_be_complete():
    assert "instead of 9" in refused(changed(Pipe, data_bytes=9)).message


def test_timers_and_limits_are_unique():
    for kind in (IntervalTimer, PosixTimer, ResourceLimit):
        records = make_records()
        index = next(index for index, record in enumerate(records) if isinstance(record, kind))
        assert "has number" in refused([*records[:index], records[index], *records[index:]]).message


def test_pages_may_span_neighbouring_areas():
    verify([*make_records(), make_pages(address=MEMORY_START + 5 * PAGE_BYTES, pages=3)])


def test_an_object_may_not_follow_its_use():
    records = make_records()
    records[2:3] = []
    assert "no REGULAR_FILE" in refused(records).message


class TestTrees:
    def test_a_tree_is_valid(self):
        verify(make_tree_records())

    @pytest.mark.parametrize(("values", "said"), [
        ({"pid": PID + 5}, "taken or none"), ({"pid": 0}, "taken or none"), ({"parent_pid": 77}, "not before it"),
        ({"wait_status": 1 << 16}, "wait status"), ({"exit_signal": 65}, "above 64"), ({"uids": [0]}, "four uids")])
    def test_zombies(self, values, said):
        records = [make_zombie(**values) if isinstance(record, Zombie) else record for record in make_tree_records()]
        assert said in refused(records).message

    def test_the_first_process_shares_with_nobody(self):
        records = make_records()
        at = next(index for index, record in enumerate(records) if isinstance(record, Served))
        assert "the first process" in refused([*records[:at], Sharing(files=1, directories=1), *records[at:]]).message

    def test_shared_files_are_not_listed_twice(self):
        records = make_tree_records()
        at = next(index for index, record in enumerate(records) if isinstance(record, Sharing)) + 3
        records.insert(at, FileDescriptor(pid=PID + 5, fd=0, objref=1, close_on_exec=0))
        assert "shares the file table" in refused(records).message


@pytest.mark.parametrize(("address", "pages"), [(MEMORY_START + 18 * PAGE_BYTES, 1), (MEMORY_START + 7 * PAGE_BYTES, 2),
                                                (MEMORY_START - PAGE_BYTES, 1), (MEMORY_START + 1, 1),
                                                (MEMORY_START, 0)])
def test_a_guard_region_lies_in_memory(address: int, pages: int) -> None:
    message = refused(changed(GuardRegions, runs=(PageRun(address=address, pages=pages),))).message
    assert ("guard from" if pages and address % PAGE_BYTES == 0 else "has a run of") in message


def test_guard_regions_ascend_over_all_records() -> None:
    records = make_records()
    at = next(index for index, record in enumerate(records) if isinstance(record, GuardRegions))
    assert "before the end" in refused([*records[:at], records[at], *records[at:]]).message
    assert "among the records of" in refused(changed(GuardRegions, pid=PID + 1)).message


def test_a_memory_policy_is_of_the_thread_before_it() -> None:
    assert "not of the one before it" in refused(changed(ThreadPolicy, tid=PID)).message
    records = make_records()
    at = next(index for index, record in enumerate(records) if isinstance(record, ThreadPolicy))
    assert "may not follow" in refused([*records[:at], records[at], *records[at:]]).message
