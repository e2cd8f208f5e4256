"""Which pages are a process's own."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from typing import TYPE_CHECKING

import pytest

from crd.errors import NativeError
from crd.native.memory import PAGE_BYTES
from crd.native.pagemap import PageMap
from crd.native.syscall import NR, syscall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MADV_GUARD_INSTALL = 102
PAGES = 16


def address_of(area: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


@pytest.fixture(params=["scan", "entries"])
def own(request: pytest.FixtureRequest) -> Iterator[Callable[[mmap.mmap], list[tuple[int, int]]]]:
    """Find own pages in an area, as page numbers, both ways."""
    with PageMap(os.getpid()) as pagemap:
        def find(area: mmap.mmap) -> list[tuple[int, int]]:
            start = address_of(area)
            runs = pagemap._find([(start, len(area))], scan=request.param == "scan")[0].runs()
            return [((at - start) // PAGE_BYTES, (at - start + length) // PAGE_BYTES) for at, length in runs]
        yield find


def test_only_written_pages_of_anonymous_memory(own: Callable[[mmap.mmap], list[tuple[int, int]]]) -> None:
    area = mmap.mmap(-1, PAGES * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    assert own(area) == []
    for page in (0, 1, 2, 7, 15):
        area[page * PAGE_BYTES] = 1
    assert own(area) == [(0, 3), (7, 8), (15, 16)]


def test_pages_of_a_file_are_not_own_until_written(own: Callable[[mmap.mmap], list[tuple[int, int]]],
                                                   tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * PAGES * PAGE_BYTES)
    with path.open("r+b") as file:
        area = mmap.mmap(file.fileno(), PAGES * PAGE_BYTES, flags=mmap.MAP_PRIVATE)
    assert area[5 * PAGE_BYTES] == ord("x")
    area[3 * PAGE_BYTES] = 0
    assert own(area) == [(3, 4)]


def test_guard_pages_have_no_content(own: Callable[[mmap.mmap], list[tuple[int, int]]]) -> None:
    area = mmap.mmap(-1, PAGES * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area[:] = b"x" * len(area)
    try:
        syscall(NR.MADVISE, address_of(area) + 4 * PAGE_BYTES, 2 * PAGE_BYTES, MADV_GUARD_INSTALL)
    except NativeError:
        assert own(area) == [(0, PAGES)]  # before 6.13 there are no guard pages
        return
    assert own(area) == [(0, 4), (6, PAGES)]


def test_many_scattered_pages_are_all_found() -> None:
    n = 40_001
    area = mmap.mmap(-1, n * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    for page in range(0, n, 2):
        area[page * PAGE_BYTES] = 1
    start = address_of(area)
    with PageMap(os.getpid()) as pagemap:
        for scan in (True, False):
            assert pagemap._find([(start, len(area))], scan=scan)[0].runs() == [
                (start + page * PAGE_BYTES, PAGE_BYTES) for page in range(0, n, 2)]


def test_a_guard_page_is_told_by_its_mark_alone() -> None:
    """As kernels before 6.15 tell of it."""
    area = mmap.mmap(-1, PAGES * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = address_of(area)
    try:
        syscall(NR.MADVISE, start, PAGE_BYTES, MADV_GUARD_INSTALL)
    except NativeError:
        pytest.skip("before 6.13 there are no guard pages")
    with PageMap(os.getpid()) as pagemap:
        [entry] = struct.unpack("<Q", os.pread(pagemap.fd, 8, start // PAGE_BYTES * 8))
        assert (entry & 0x1F, entry >> 5 & 4) == (0x1F, 4)
        assert pagemap.own_and_guard_pages([(start, len(area))]) == ([], [(start, PAGE_BYTES)])
