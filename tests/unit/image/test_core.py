from __future__ import annotations

import io
import random
import struct
import subprocess
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crd.console.core_file import AnyOrder
from crd.errors import ImageError, ImageTaskMissing, ImageVersionUnsupported
from crd.image.core import memory, writer
from crd.image.core.elf import Segment, notes_header
from crd.image.core.writer import Core, _Headers, write_core
from crd.image.objects import UNNAMED_MEMORY, FileContent, SharedMemory, UnnamedFile
from crd.image.profile import (
    PAGE_BYTES,
    VMA_ANONYMOUS,
    VMA_PRIVATE_FILE,
    VMA_SHARED_FILE,
    VMA_SHARED_MEMORY,
    PageRun,
    Pages,
    PendingSignal,
    SharedPages,
    Vma,
)
from crd.image.records import HeadArch, Task, comm_string
from crd.image.vdso import digest
from tests.support.builders import (
    MEMORY_START,
    PID,
    make_file,
    make_memory_layout,
    make_pages,
    make_process,
    make_process_records,
    make_profile,
    make_signal_actions,
    make_thread,
    make_tree_records,
    make_vma,
    write_image,
)
from tests.support.elf_core import ElfCore
from tests.support.linux_cr import IMAGES

if TYPE_CHECKING:
    from pathlib import Path

    from crd.image.codec import Record

PRSTATUS, FPREGSET, PRPSINFO, AUXV, SIGINFO, XSTATE = 1, 2, 3, 6, 0x53494749, 0x202
FILE, OTHER_FILE, SHARED, UNNAMED, SAVED = range(1, 6)
OBJECTS = [
    make_file(FILE, path="/lib/one"), make_file(OTHER_FILE, path="/lib/two", inode=78),
    SharedMemory(objref=SHARED, bytes=1 << 40),
    UnnamedFile(objref=UNNAMED, kind=UNNAMED_MEMORY, path="memory", mode=0o600, uid=0, gid=0, size=1 << 40,
                mtime_ns=0, seals=0),
    FileContent(objref=SAVED, file=OTHER_FILE, use=3, size=1 << 40, uid=0, gid=0, saved=1, digest=b"", digest_start=0)]


def page(number: int) -> bytes:
    return random.Random(number).randbytes(PAGE_BYTES)


def image_of(vmas: list[Vma], pages: list[Record], threads: list[Record] | None = None, *,
             objects: list[Record] = OBJECTS, task: Task | None = None, **values: Any) -> bytes:
    """An image of one process that has these areas."""
    profile = {name: values.pop(name) for name in ("vdso_digest",) if name in values}
    layout = {name: values.pop(name) for name in ("arg_start", "arg_end", "vdso_start", "vdso_bytes", "auxv")
              if name in values}
    threads = threads or [make_thread()]
    return write_image([
        HeadArch(has_fxsr=1, has_xsave=1, xstate_bytes=832),
        make_profile(threads=sum(type(record).__name__ == "Thread" for record in threads), **profile), *objects,
        task or Task(state=0, exit_state=0, exit_code=0, exit_signal=17), comm_string("worker"), make_process(**values),
        make_memory_layout(**layout), *vmas, make_signal_actions(), *threads, *pages])


def own_page(address: int, data: bytes) -> Pages:
    return Pages(pid=PID, runs=[PageRun(address=address, pages=1)], data=memoryview(data))


def shared_pages(objref: int, first: int, data: bytes) -> SharedPages:
    return SharedPages(objref=objref, runs=[PageRun(address=first * PAGE_BYTES, pages=len(data) // PAGE_BYTES)],
                       data=memoryview(data))


class Nowhere:
    """Takes a core."""

    def write_at(self, offset: int, data: bytes) -> None:
        pass


@pytest.fixture
def written(tmp_path: Path):
    """Have the core of a task written, and read again."""
    opened: list[ElfCore] = []

    def written(image: bytes, pid: int | None = None, **options: Any) -> tuple[ElfCore, Core]:
        with (tmp_path / "core").open("wb") as file:
            core = write_core(io.BytesIO(image), AnyOrder(file.fileno()), pid, **options)
        assert core.core_bytes == (tmp_path / "core").stat().st_size
        opened.append(ElfCore(tmp_path / "core"))
        return opened[-1], core

    yield written
    for one in opened:
        one.close()


def test_every_thread_has_its_registers(written) -> None:
    threads = [make_thread(tid, registers=random.Random(tid).randbytes(216), xstate=random.Random(tid).randbytes(2696),
                           signal_mask=tid) for tid in (PID, PID + 9, PID + 3)]
    core, figures = written(image_of([make_vma()], [], threads, process_group=7, session=8))
    assert [note.kind for note in core.notes] == [PRSTATUS, PRPSINFO, AUXV, 0x46494C45, FPREGSET, XSTATE,
                                                  *[PRSTATUS, FPREGSET, XSTATE] * 2]
    assert [note.owner for note in core.notes if note.kind == XSTATE] == [b"LINUX"] * 3
    for thread, status, floating, extended in zip(threads, core.contents(PRSTATUS), core.contents(FPREGSET),
                                                  core.contents(XSTATE), strict=True):
        assert len(status) == 336
        assert struct.unpack_from("<Q4i", status, 24) == (thread.tid, thread.tid, 1, 7, 8)
        assert status[112:328] == thread.registers
        assert floating == thread.xstate[:512]
        assert extended == thread.xstate
    assert figures == Core(PID, "worker", "/usr/bin/worker", 3, 0, core.size)


def test_the_program_and_its_command_line(written) -> None:
    line = b"worker\0--speed\0" + b"x" * 90 + b"\0"
    start = MEMORY_START + 2 * PAGE_BYTES - 10  # over the end of a page
    memory = bytes(start - MEMORY_START) + line + bytes(-(start + len(line)) % PAGE_BYTES)
    pages = [own_page(MEMORY_START + at, memory[at:at + PAGE_BYTES]) for at in range(0, len(memory), PAGE_BYTES)]
    core, _ = written(image_of([make_vma()], pages, [make_thread(uids=[5] * 4, gids=[6] * 4, nice=-7)],
                               task=Task(state=1, exit_state=0, exit_code=0, exit_signal=17), arg_start=start,
                               arg_end=start + len(line)))
    (info,) = core.contents(PRPSINFO)
    assert info[:4] == b"\x01S\0" + (-7).to_bytes(1, "little", signed=True)
    assert struct.unpack_from("<6I", info, 16) == (5, 6, PID, 1, PID, PID)
    assert info[40:56] == b"worker".ljust(16, b"\0")
    assert info[56:] == line.replace(b"\0", b" ")[:79] + b"\0"


def test_a_stop_and_a_fault_are_told(written) -> None:
    def siginfo(number: int, code: int) -> bytes:
        return struct.pack("<iii", number, 0, code).ljust(128, b"\x11")

    user, fault = siginfo(11, 0), siginfo(11, 1)
    threads = [make_thread(), PendingSignal(tid=PID, siginfo=siginfo(10, 0)), PendingSignal(tid=PID, siginfo=user),
               PendingSignal(tid=PID, siginfo=fault), make_thread(PID + 1)]
    core, _ = written(image_of([make_vma()], [], threads))
    assert core.contents(SIGINFO) == [fault]
    assert [struct.unpack_from("<i", status)[0] for status in core.contents(PRSTATUS)] == [11, 0]
    assert [struct.unpack_from("<hxxQ", status, 12) for status in core.contents(PRSTATUS)] == [
        (11, 1 << 10 | 1 << 9), (0, 0)]
    core, _ = written(image_of([make_vma()], [], stopped_by=20))
    assert core.contents(SIGINFO) == [struct.pack("<i", 20).ljust(128, b"\0")]
    core, _ = written(image_of([make_vma()], []))
    assert core.contents(SIGINFO) == []


def test_files_are_told_and_what_is_theirs_is_left_out(written) -> None:
    at = MEMORY_START
    vmas = [make_vma(at, 4, kind=VMA_PRIVATE_FILE, objref=FILE, protection=5),
            make_vma(at + 0x4000, 4, kind=VMA_PRIVATE_FILE, objref=FILE, offset=0x4000),
            make_vma(at + 0x8000, 1, kind=VMA_SHARED_FILE, objref=FILE, protection=1)]
    core, _ = written(image_of(vmas, [make_pages(address=at + 0x5000, fill=1),
                                      make_pages(address=at + 0x7000, fill=2)]))
    assert core.mapped_files() == [(at, at + 0x4000, 0, "/lib/one"), (at + 0x4000, at + 0x8000, 4, "/lib/one"),
                                   (at + 0x8000, at + 0x9000, 0, "/lib/one")]
    assert [core.page(at + number * PAGE_BYTES) for number in range(9)] == [
        None, None, None, None, None, b"\1" * PAGE_BYTES, None, b"\2" * PAGE_BYTES, None]
    assert [load.flags for load in core.loads] == [5, 6, 6, 6, 4]  # PF_X 1, PF_W 2, PF_R 4


def test_content_that_the_image_has_is_there(written) -> None:
    """Of shared memory, of files without a name, and of files that were saved; under pages of the task's own."""
    at, size = MEMORY_START, 8 * PAGE_BYTES
    vmas = [make_vma(at, 8, kind=VMA_SHARED_MEMORY, objref=SHARED),
            make_vma(at + size, 8, kind=VMA_PRIVATE_FILE, objref=UNNAMED, offset=2 * PAGE_BYTES),
            make_vma(at + 2 * size, 8, kind=VMA_SHARED_FILE, objref=OTHER_FILE),
            make_vma(at + 3 * size, 4, kind=VMA_SHARED_MEMORY, objref=SHARED, offset=PAGE_BYTES)]
    pages = [shared_pages(SHARED, 1, page(1) + page(2)), shared_pages(UNNAMED, 1, page(3) + page(4)),
             shared_pages(SHARED, 4, page(5)), shared_pages(SAVED, 7, page(6)), shared_pages(UNNAMED, 5, page(7)),
             make_pages(address=at + size + PAGE_BYTES, fill=8), make_pages(address=at + size + 3 * PAGE_BYTES, fill=9)]
    core, figures = written(image_of(vmas, pages))
    nothing = (None, bytes(PAGE_BYTES))
    expected = {1: page(1), 2: page(2), 4: page(5), 8: page(4), 9: b"\x08" * PAGE_BYTES, 11: b"\x09" * PAGE_BYTES,
                23: page(6), 24: page(1), 25: page(2), 27: page(5)}
    for number in range(28):
        found = core.page(at + number * PAGE_BYTES)
        assert found == expected[number] if number in expected else found in nothing, number
    assert core.mapped_files() == []
    assert figures.memory_bytes == 9 * PAGE_BYTES, "what is mapped twice is there once"


def test_what_no_dump_may_hold_is_not_in_it(written, tmp_path: Path) -> None:
    """MADV_DONTDUMP: secrets."""
    at, secret = MEMORY_START, {"flags": "rd wr mr mw me dd ac"}
    vmas = [make_vma(at, 2, **secret), make_vma(at + 0x2000, 2, kind=VMA_SHARED_MEMORY, objref=SHARED, **secret),
            make_vma(at + 0x4000, 2, kind=VMA_PRIVATE_FILE, objref=UNNAMED, **secret), make_vma(at + 0x6000, 1),
            make_vma(at + 0x7000, 1, kind=VMA_PRIVATE_FILE, objref=UNNAMED)]
    core, _ = written(image_of(vmas, [
        shared_pages(SHARED, 0, page(1)), shared_pages(UNNAMED, 0, page(2)), own_page(at, page(3)),
        own_page(at + 0x5000, page(4)), own_page(at + 0x6000, page(5))]))
    assert [core.page(at + number * PAGE_BYTES) for number in range(8)] == [None] * 6 + [page(5), page(2)]
    content = (tmp_path / "core").read_bytes()
    assert not any(page(number) in content for number in (1, 3, 4))


def test_vast_memory_of_which_little_is_used_makes_a_small_core(written, tmp_path: Path) -> None:
    pages = 1 << 28
    offsets = [0, 1, 5, (1 << 27) + 3, pages - 1]
    vmas = [make_vma(MEMORY_START, pages)]
    core, _ = written(image_of(vmas, [make_pages(address=MEMORY_START + offset * PAGE_BYTES, fill=index + 1)
                                      for index, offset in enumerate(offsets)]))
    for index, offset in enumerate(offsets):
        assert core.page(MEMORY_START + offset * PAGE_BYTES) == bytes([index + 1]) * PAGE_BYTES
    assert core.page(MEMORY_START + 3 * PAGE_BYTES) == bytes(PAGE_BYTES)
    assert core.page(MEMORY_START + (1 << 26) * PAGE_BYTES) is None
    assert core.size < 64 << 10
    assert sum(load.memory_bytes for load in core.loads) == pages * PAGE_BYTES


def test_small_holes_are_holes_in_the_file(written, tmp_path: Path) -> None:
    hole = memory.HOLE_BYTES_MAX // PAGE_BYTES
    core, _ = written(image_of([make_vma(pages=hole + 9)], [
        make_pages(fill=1), make_pages(address=MEMORY_START + (hole + 1) * PAGE_BYTES, fill=2)]))
    assert [load.file_bytes for load in core.loads] == [(hole + 2) * PAGE_BYTES]
    assert core.page(MEMORY_START + hole * PAGE_BYTES) == bytes(PAGE_BYTES)
    assert (tmp_path / "core").stat().st_blocks * 512 < core.size // 100


AREAS = st.lists(st.tuples(
    st.integers(0, 3), st.integers(1, 6), st.sampled_from([
        (VMA_ANONYMOUS, 0), (VMA_PRIVATE_FILE, FILE), (VMA_PRIVATE_FILE, UNNAMED), (VMA_PRIVATE_FILE, OTHER_FILE),
        (VMA_SHARED_FILE, FILE), (VMA_SHARED_FILE, OTHER_FILE), (VMA_SHARED_FILE, UNNAMED),
        (VMA_SHARED_MEMORY, SHARED)]),
    st.integers(0, 5)), min_size=1, max_size=8)
CONTENT_OF = {SHARED: SHARED, UNNAMED: UNNAMED, OTHER_FILE: SAVED}


@settings(max_examples=60, deadline=None)
@given(AREAS, st.sets(st.integers(0, 50)), st.integers(0, 3),
       st.sets(st.tuples(st.integers(0, 10), st.sampled_from([SHARED, UNNAMED, SAVED]))))
def test_each_page_is_what_the_task_had(tmp_path_factory, areas, own, hole, shared) -> None:
    """However it is mapped: its own page, else that of what it maps, else nothing or zeros."""
    vmas, at, expected = [], 16, {}
    for gap, length, (kind, objref), offset in areas:
        at += gap
        vmas.append(make_vma(at * PAGE_BYTES, length, kind=kind, objref=objref,
                             offset=offset * PAGE_BYTES if objref else 0))
        for number in range(length):
            content = (offset + number, CONTENT_OF.get(objref))
            if at + number in own and kind in {VMA_ANONYMOUS, VMA_PRIVATE_FILE}:
                expected[at + number] = {page(at + number)}
            elif content in shared:
                expected[at + number] = {page(hash(content))}
            else:
                expected[at + number] = {None} if objref == FILE else {None, bytes(PAGE_BYTES)}
        at += length
    records = [*(shared_pages(objref, number, page(hash((number, objref)))) for number, objref in sorted(shared)),
               *(own_page(number * PAGE_BYTES, page(number)) for number in sorted(own)
                 if expected.get(number) == {page(number)})]
    path = tmp_path_factory.getbasetemp() / "core"
    with path.open("wb") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "HOLE_BYTES_MAX", hole * PAGE_BYTES)
        write_core(io.BytesIO(image_of(vmas, records)), AnyOrder(file.fileno()))
    core = ElfCore(path)
    for number, contents in expected.items():
        assert core.page(number * PAGE_BYTES) in contents
    assert sum(load.memory_bytes for load in core.loads) == len(expected) * PAGE_BYTES
    core.close()


def test_any_task_of_a_tree(written) -> None:
    records = make_tree_records()
    records.append(make_pages(PID + 5, fill=0x77))
    core, figures = written(write_image(records), PID + 5)
    assert (figures.pid, figures.threads) == (PID + 5, 1)
    assert core.page(MEMORY_START) == b"\x77" * PAGE_BYTES
    core, figures = written(write_image(records))
    assert (figures.pid, figures.threads) == (PID, 2)
    assert core.page(MEMORY_START) == b"\xab" * PAGE_BYTES


def test_a_task_that_is_not_there(written) -> None:
    for pid, said in ((1, "has no task 1"), (PID + 10, "has ended")):
        with pytest.raises(ImageTaskMissing, match=said) as error:
            written(write_image(make_tree_records()), pid)
        assert error.value.exit_status == 11
    with pytest.raises(ImageTaskMissing) as error:
        written(write_image(make_tree_records()), 1)
    assert error.value.hint == f"It has {PID} (worker), {PID + 5} (worker)."
    many = [make_process_records(PID + number, parent_pid=PID) for number in range(30)]
    with pytest.raises(ImageTaskMissing) as error:
        written(write_image([HeadArch(has_fxsr=1, has_xsave=1, xstate_bytes=832),
                             make_profile(processes=30, threads=30), *(record for one in many for record in one)]), 1)
    assert error.value.hint.endswith(f"{PID + 19} (worker) and others.")


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_images_of_kernels_are_refused(written, image: bytes) -> None:
    with pytest.raises(ImageVersionUnsupported, match="written by a Linux-CR kernel") as error:
        written(image)
    assert error.value.exit_status == 13


def test_the_vdso_of_the_host_if_it_is_the_same(written) -> None:
    vdso = bytearray(page(7) + page(8))
    struct.pack_into("<Q", vdso, 40, 5000)
    struct.pack_into("<HH", vdso, 58, 64, 2)
    padded = bytes(vdso[:5128]).ljust(2 * PAGE_BYTES, b"\0")
    stub = vdso[:-8] + b"ourstub!"
    common = {"vdso_start": MEMORY_START - 8192, "vdso_bytes": 8192}
    image = image_of([make_vma()], [make_pages()], vdso_digest=digest(stub), **common)
    core, _ = written(image, vdso=bytes(vdso))
    assert core.page(MEMORY_START - 8192) + core.page(MEMORY_START - 4096) == padded
    assert core.loads[0].flags == 5
    assert core.page(MEMORY_START) == b"\xab" * PAGE_BYTES
    core, _ = written(image, vdso=bytes(reversed(vdso)))
    assert len(core.loads) == 1
    for start in (MEMORY_START - 4096, MEMORY_START + 4096, MEMORY_START + 3 * 4096):
        core, _ = written(image_of([make_vma()], [make_pages()], vdso_digest=digest(vdso), vdso_start=start,
                                   vdso_bytes=8192), vdso=bytes(vdso))
        assert len(core.loads) == 1, "an image that has other memory there"


def test_more_segments_than_the_file_header_can_count(tmp_path: Path) -> None:
    count = 1 << 16
    headers = _Headers(io.BytesIO())
    headers.add(notes_header(64, 0), *(Segment(index * PAGE_BYTES, PAGE_BYTES, 0x1000, 0, 3).header()
                                       for index in range(count)))
    with (tmp_path / "core").open("wb") as file:
        end = headers.write_to(AnyOrder(file.fileno()), 2 * PAGE_BYTES)
    core = ElfCore(tmp_path / "core")
    assert core.size == end
    assert len(core.loads) == count
    core.close()
    shown = subprocess.run(["readelf", "-h", tmp_path / "core"], capture_output=True, text=True, check=True)
    assert f"65535 ({count + 1})" in shown.stdout
    assert not shown.stderr


def test_hostile_values_are_no_failure_of_ours(written) -> None:
    worst = make_thread(nice=-2**31, uids=[2**32 - 1] * 4, gids=[2**32 - 1] * 4, registers=b"\xff" * 216,
                        xstate=b"\xff" * 70_000)
    objects: list[Record] = [make_file(FILE, path="/" + "x" * 10_000), make_file(OTHER_FILE, path="\udcff\n\x1b[0m")]
    core, _ = written(image_of(
        [make_vma(MEMORY_START, 1, kind=VMA_PRIVATE_FILE, objref=FILE, offset=2**63 - 4096),
         make_vma(MEMORY_START + PAGE_BYTES, 1, kind=VMA_SHARED_FILE, objref=OTHER_FILE)], [], [worst], objects=objects,
        task=Task(state=2**32 - 1, exit_state=0, exit_code=0, exit_signal=17), parent_pid=2**32 - 1,
        process_group=2**32 - 1, session=2**32 - 1, arg_start=0, arg_end=2**47 - 4096, auxv=b"\xff" * 1600,
        exe="\x1b"))
    assert core.contents(0x46494C45)[0].endswith(b"\xff\n\x1b[0m\0"), "a path that no kernel knows is left out"
    assert struct.unpack_from("<Q", core.contents(0x46494C45)[0]) == (1,)


def test_broken_images_say_where(tmp_path: Path) -> None:
    """And nothing that begins like a core is left of them."""
    image, seed = write_image(make_tree_records()), random.Random(5)
    refused = 0
    for round_ in range(120):
        broken = bytearray(image)
        if round_ % 2:
            del broken[seed.randrange(len(broken)):]
        else:
            for _ in range(seed.randrange(1, 4)):
                broken[seed.randrange(min(len(broken), 12_000))] = seed.choice([0, 1, 0x7F, 0x80, 0xFF])
        with (tmp_path / "core").open("wb") as file:
            try:
                write_core(io.BytesIO(broken), AnyOrder(file.fileno()), seed.choice([None, PID, PID + 5]))
            except ImageError as error:
                refused += 1
                assert 0 <= error.offset <= len(broken)  # noqa: PT017  # no error is right too
                assert (tmp_path / "core").read_bytes()[:4] in {b"", b"\0\0\0\0"}
            else:
                ElfCore(tmp_path / "core").close()
    assert 60 < refused < 120


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pieces it is in."""
    for what in ("_IN_MEMORY_BYTES_MAX", "_COPIED_BYTES"):
        monkeypatch.setattr(writer, what, 4096)
    peaks = []
    for n_records in (2, 12):
        pages = [Pages(pid=PID, runs=[PageRun(address=MEMORY_START + (256 * number + index) * 2 * PAGE_BYTES, pages=1)
                                      for index in range(256)], data=memoryview(bytes(256 * PAGE_BYTES)))
                 for number in range(n_records)]
        image = io.BytesIO(image_of([make_vma(pages=1 << 20, kind=VMA_PRIVATE_FILE, objref=FILE)], pages))
        tracemalloc.start()
        try:
            assert write_core(image, Nowhere()).memory_bytes == n_records << 20
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + (64 << 10)
