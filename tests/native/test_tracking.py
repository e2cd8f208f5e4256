"""What a process writes, noted by the kernel for whoever holds its userfaultfd."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.errors import NativeError
from crd.native import tracee, tracking
from crd.native.inject import Injector
from crd.native.memory import PAGE_BYTES, Memory
from crd.native.pagemap import PageMap
from crd.target import procfs
from tests.native.chaos import vdso

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Look = Callable[[], tuple[list[tuple[int, int]], list[tuple[int, int]]]]

pytestmark = pytest.mark.root

PAGES = 16
PROGRAM = """
import ctypes, mmap, sys
area = mmap.mmap(-1, 16 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.madvise(mmap.MADV_NOHUGEPAGE)
area[:12 * 4096] = b"x" * 12 * 4096
libc = ctypes.CDLL(None, use_errno=True)
libc.mremap.restype = ctypes.c_void_p
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
print(start, flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Writer:
    """A program that does with its area what it is told, and its page map."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        self.process = process
        self.pid = process.pid
        self.area = (int(process.stdout.readline()), PAGES * PAGE_BYTES)

    def do(self, line: str) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def borrow(self, free_fd: int | None = None) -> int:
        open_ones = {int(path.name) for path in Path(f"/proc/{self.pid}/fd").iterdir()}
        lowest = next(fd for fd in range(len(open_ones) + 1) if fd not in open_ones)
        tracee.seize(self.pid, tracee.OPTION_TRACESYSGOOD)
        tracee.interrupt(self.pid)
        assert tracee.wait(self.pid)
        try:
            with Memory(self.pid) as memory:
                return tracking.borrow(Injector(memory, [vdso(self.pid)]), self.pid, tracee.get_registers(self.pid),
                                       lowest if free_fd is None else free_fd)
        finally:
            tracee.detach(self.pid)

    def fds(self) -> set[str]:
        return {os.readlink(path) for path in Path(f"/proc/{self.pid}/fd").iterdir()}


@pytest.fixture
def writer() -> Iterator[Writer]:
    with subprocess.Popen([sys.executable, "-S", "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as process:
        yield Writer(process)
        process.kill()


def numbers(writer: Writer, runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [((start - writer.area[0]) // PAGE_BYTES, length // PAGE_BYTES) for start, length in runs]


def page_table_bytes(pid: int) -> int:
    return int(procfs.status(pid)["VmPTE"].split()[0]) << 10


@pytest.fixture
def look(writer: Writer) -> Iterator[Look]:
    """Watch the area, and find changed pages of it, and those that hold anything, as (first page, pages)."""
    fd = writer.borrow()
    assert tracking.watch(fd, writer.area)
    with PageMap(writer.pid) as pagemap:
        def find() -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
            changed, unknown = tracking.find_changed(pagemap, [writer.area], dense=True)
            assert not unknown
            runs = changed.runs()
            assert changed.bytes == sum(length for _, length in runs)
            return numbers(writer, runs), numbers(writer, pagemap.own_pages([writer.area]))
        yield find
    os.close(fd)


def test_the_process_keeps_no_descriptor(writer: Writer) -> None:
    before = writer.fds()
    fd = writer.borrow()
    assert writer.fds() == before
    assert "userfaultfd" in os.readlink(f"/proc/self/fd/{fd}")
    writer.do("area[0] = 1")
    os.close(fd)


def test_nothing_is_closed_that_is_not_ours(writer: Writer) -> None:
    before = writer.fds()
    with pytest.raises(NativeError, match="was not free"):
        writer.borrow(free_fd=77)
    assert writer.fds() == before


def test_each_write_is_found_once(writer: Writer, look: Look) -> None:
    assert look() == ([(0, 16)], [(0, 12)])  # all, written or not, that was there before it was watched
    assert look() == ([], [(0, 12)])
    writer.do("area[3 * 4096] = 1; area[4 * 4096] = 1; area[14 * 4096] = 1")
    assert look() == ([(3, 2), (14, 1)], [(0, 12), (14, 1)])
    assert look() == ([], [(0, 12), (14, 1)])


def test_a_write_by_the_kernel_counts(writer: Writer, look: Look) -> None:
    look()
    writer.do("import os; os.preadv(os.open('/dev/zero', os.O_RDONLY), [memoryview(area)[5 * 4096:5 * 4096 + 9]], 0)")
    assert look() == ([(5, 1)], [(0, 12)])


def test_what_was_given_back_has_changed_and_holds_nothing(writer: Writer, look: Look) -> None:
    look()
    writer.do("area.madvise(mmap.MADV_DONTNEED, 8 * 4096, 2 * 4096)")
    assert look() == ([(8, 2)], [(0, 8), (10, 2)])
    writer.do("area[8 * 4096] = 1")
    assert look() == ([(8, 1)], [(0, 9), (10, 2)])


def test_a_page_of_zeros_that_came_by_a_read_holds_nothing(writer: Writer, look: Look) -> None:
    look()
    writer.do("assert area[15 * 4096] == 0")
    assert look() == ([], [(0, 12)])
    writer.do("area.madvise(mmap.MADV_DONTNEED, 3 * 4096, 4096); assert area[3 * 4096] == 0")
    assert look() == ([(3, 1)], [(0, 3), (4, 8)])  # it held something before
    writer.do("area[15 * 4096] = 1")
    assert look() == ([(15, 1)], [(0, 3), (4, 8), (15, 1)])


def test_a_swapped_out_page_stays_what_it_is(writer: Writer, look: Look) -> None:
    look()
    writer.do("area.madvise(21, 0, 4 * 4096)  # MADV_PAGEOUT")
    assert look() == ([], [(0, 12)])


def test_what_vanishes_with_its_page_table_is_seen(writer: Writer, tmp_path: Path) -> None:
    huge = 2 << 20
    writer.do(f"big = mmap.mmap(-1, {4 * huge}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); "
              f"big.madvise(mmap.MADV_HUGEPAGE); big[:] = b'x' * len(big); "
              f"open('{tmp_path}/at', 'w').write(str(ctypes.addressof(ctypes.c_char.from_buffer(big))))")
    at = int((tmp_path / "at").read_text())
    second = (at // huge + 2) * huge
    fd = writer.borrow()
    area = (at, 4 * huge)
    assert tracking.watch(fd, area)
    with PageMap(writer.pid) as pagemap:
        tracking.find_changed(pagemap, [area], dense=True)
        pages = array("Q", [second - PAGE_BYTES, second, second + PAGE_BYTES, second + huge])
        assert pagemap.gone(pages) == []
        writer.do(f"big.madvise(mmap.MADV_DONTNEED, {second - at}, {huge})")
        changed = tracking.find_changed(pagemap, [area], dense=True)[0].runs()
        gone = pagemap.gone(pages)
        assert changed == [(second, huge)] or gone == [second, second + PAGE_BYTES]
        assert not {second - PAGE_BYTES, second + huge} & {*gone}
    os.close(fd)


def test_an_area_that_is_hardly_used_costs_no_page_tables(writer: Writer, tmp_path: Path) -> None:
    length = 1 << 36
    writer.do(f"big = mmap.mmap(-1, {length}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000); "
              f"big[5 * 4096] = 1; big[1 << 30] = 1; "
              f"open('{tmp_path}/at', 'w').write(str(ctypes.addressof(ctypes.c_char.from_buffer(big))))")
    at = int((tmp_path / "at").read_text())
    fd = writer.borrow()
    assert tracking.watch(fd, (at, length))
    before = page_table_bytes(writer.pid)
    with PageMap(writer.pid) as pagemap:
        for found in ([(at + 5 * PAGE_BYTES, PAGE_BYTES), (at + (1 << 30), PAGE_BYTES)], []):
            assert tracking.find_changed(pagemap, [(at, length)], dense=False)[0].runs() == found
    assert page_table_bytes(writer.pid) < before + (1 << 20)
    os.close(fd)


def test_nothing_is_known_of_memory_that_came_later(writer: Writer) -> None:
    fd = writer.borrow()
    with PageMap(writer.pid) as pagemap:
        assert tracking.find_changed(pagemap, [writer.area], dense=True)[1] == [writer.area]
        assert pagemap.own_pages([writer.area]) == [(writer.area[0], 12 * PAGE_BYTES)]
        assert tracking.watch(fd, writer.area)
        assert not tracking.find_changed(pagemap, [writer.area], dense=True)[1]
        writer.do("here = ctypes.c_void_p(start); libc.mremap(here, 16 * 4096, 16 * 4096, 3, ctypes.c_void_p(1 << 40))")
        moved = (1 << 40, PAGES * PAGE_BYTES)
        assert tracking.find_changed(pagemap, [moved], dense=True)[1] == [moved]
    os.close(fd)


def test_many_scattered_pages_are_all_found_and_in_order(writer: Writer, tmp_path: Path) -> None:
    n = 100_001
    writer.do(f"big = mmap.mmap(-1, {n} * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); "
              f"big.madvise(mmap.MADV_NOHUGEPAGE); [big.__setitem__(page * 4096, 1) for page in range({n})]; "
              f"open('{tmp_path}/at', 'w').write(str(ctypes.addressof(ctypes.c_char.from_buffer(big))))")
    start = int((tmp_path / "at").read_text())
    fd = writer.borrow()
    areas = [(start, n * PAGE_BYTES)]
    assert tracking.watch(fd, areas[0])
    with PageMap(writer.pid) as pagemap:
        assert tracking.find_changed(pagemap, areas, dense=True)[0].bytes == n * PAGE_BYTES
        writer.do(f"[big.__setitem__(page * 4096, 2) for page in range(0, {n}, 2)]")
        changed, _ = tracking.find_changed(pagemap, areas, dense=True)
        assert changed.runs() == [(start + page * PAGE_BYTES, PAGE_BYTES) for page in range(0, n, 2)]
        assert changed.bytes == (n + 1) // 2 * PAGE_BYTES
        writer.do(f"[big.madvise(mmap.MADV_DONTNEED, page * 4096, 4096) for page in range(1, {n}, 2)]")
        assert pagemap.own_pages(areas) == [(start + page * PAGE_BYTES, PAGE_BYTES) for page in range(0, n, 2)]
    os.close(fd)


def test_the_notes_end_with_the_descriptor_and_the_process_goes_on(writer: Writer) -> None:
    os.close(writer.borrow())
    writer.do("area[0] = 7; assert area[0] == 7")
    fd = writer.borrow()
    assert tracking.watch(fd, writer.area)
    os.close(fd)
    with PageMap(writer.pid) as pagemap:
        assert tracking.find_changed(pagemap, [writer.area], dense=True)[1] == [writer.area]
    writer.do("area[:] = b'y' * len(area); assert area[:] == b'y' * len(area)")


def test_an_execve_ends_what_is_watched(writer: Writer) -> None:
    fd = writer.borrow()
    assert writer.process.stdin
    writer.process.stdin.write("import os; os.execv('/bin/cat', ['cat'])\n")
    writer.process.stdin.flush()
    while not Path(f"/proc/{writer.pid}/exe").readlink().name.startswith("cat"):
        pass
    assert not tracking.watch(fd, writer.area)
    os.close(fd)


def test_our_own_memory_is_no_exception() -> None:
    area = mmap.mmap(-1, PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area[0] = 1
    at = ctypes.addressof(ctypes.c_char.from_buffer(area))
    with PageMap(os.getpid()) as pagemap:
        assert pagemap.own_pages([(at, PAGE_BYTES)]) == [(at, PAGE_BYTES)]
