"""Images of processes whose writes are noted: the same as those for which all memory is read."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from crd.archive.archive import Archive
from crd.archive.stores.memory import MemoryStore
from crd.engine.api import After, CheckpointOptions, CheckpointResult, checkpoint
from crd.engine.crid import CridCounter
from crd.engine.userspace.notes import WriteNotes
from crd.errors import ImageSinkFull
from crd.ids import Crid
from crd.image.profile import PAGE_BYTES, GuardRegions, PageRun, Pages
from crd.image.reader import ImageReader
from crd.image.verify import verified
from crd.native.memory import Memory
from crd.native.pages import PageKey
from tests.engine.images import restarted
from tests.native.chaos import vdso
from tests.support.victims import Victim, until
from tests.unit.archive.streams import read_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root

MEMORY = """
import ctypes, mmap, os, random, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = libc.sbrk.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = libc.madvise.argtypes[:2]
libc.mprotect.argtypes = libc.madvise.argtypes
PAGE, FAILED = 4096, (1 << 64) - 1
areas = []

def new(pages):
    at = libc.mmap(None, pages * PAGE, 3, 0x22, -1, 0)
    areas.append([at, pages])
    return at

def write(at, pages, count):
    for _ in range(count):
        ctypes.memset(at + random.randrange(pages) * PAGE + random.randrange(4000), random.randrange(256), 90)

def step():
    at, pages = area = random.choice(areas)
    what = random.randrange(12)
    page = random.randrange(pages)
    if what < 4:
        write(at, pages, 1 + pages // 100)
    elif what == 4:
        libc.madvise(at + page * PAGE, min(8, pages - page) * PAGE, 4)  # MADV_DONTNEED
        ctypes.string_at(at + page * PAGE, 1)  # so that a page of zeros is there
    elif what == 5 and len(areas) < 40:
        write(new(random.choice([1, 30, 700])), 1, 1)
    elif what == 6 and len(areas) > 5:
        areas.remove(area)
        libc.munmap(at, pages * PAGE)
    elif what == 7:
        moved = libc.mremap(at, pages * PAGE, pages * PAGE + 20 * PAGE, 1)
        if moved not in (None, FAILED):
            area[:] = [moved, pages + 20]
    elif what == 8:
        libc.mprotect(at + page * PAGE, PAGE, 1)
        libc.mprotect(at + page * PAGE, PAGE, 3)
    elif what == 9:
        ctypes.memset(at + page * PAGE, 0, PAGE)
    elif what == 10:
        libc.madvise(at + page * PAGE, min(1500, pages - page) * PAGE, 4)  # so that page tables go, too
    else:
        fd = os.open("/dev/urandom", os.O_RDONLY)
        libc.read(fd, ctypes.c_void_p(at + page * PAGE), PAGE)
        os.close(fd)

random.seed(int(sys.argv[1]))
huge = new(3000)
libc.madvise(huge, 3000 * PAGE, 14)  # MADV_HUGEPAGE
ctypes.memset(huge, 7, 3000 * PAGE)
big = new(6000)
for page in range(6000):
    ctypes.memset(big + page * PAGE, page % 251, 300)
while True:
    while not os.path.exists("go"):
        time.sleep(0.001)
    steps = int(open("go").read())
    os.unlink("go")
    for _ in range(steps):
        step()
    open("done", "w").close()
"""


@contextmanager
def started(home: Path, source: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python program without a terminal, for as long as the context lasts."""
    (home / "program.py").write_text(source)
    with (home / "errors").open("wb") as errors, subprocess.Popen(
            [sys.executable, "-S", "program.py", *words], cwd=home, stdin=subprocess.DEVNULL, stdout=errors,
            stderr=errors, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def worker(home: Path, seed: int) -> Iterator[tuple[int, Callable[[int], None]]]:
    """Start a process that does as many random things with its memory as it is told, and waits."""
    with started(home, MEMORY, str(seed)) as process:
        def work(steps: int) -> None:
            (home / "next").write_text(str(steps))
            (home / "next").rename(home / "go")
            until("end of the work", lambda: (home / "done").exists() or process.poll() is not None)
            assert process.poll() is None
            (home / "done").unlink()
        work(0)
        yield process.pid, work


class Taker:
    """Takes images into an archive, each following the one before."""

    def __init__(self, archive: Archive, home: Path) -> None:
        self.archive = archive
        self.notes = WriteNotes()
        self.base: Crid | None = None
        self._crids = CridCounter(home / "crid")

    async def take(self, pid: int, **options: Any) -> CheckpointResult:
        sink = await self.archive.sink(self.base, follow=self.base is not None)
        self.notes.since = sink.follows
        read_end, write_end = os.pipe()

        def run() -> CheckpointResult:
            try:
                return checkpoint(pid, write_end, crids=self._crids, notes=self.notes,
                                  options=CheckpointOptions(**options))
            finally:
                os.close(write_end)

        running = asyncio.create_task(in_a_thread_of_its_own(run))
        try:
            await sink.drain(read_end)
            result = await running
            await sink.commit(Crid(result.crid))
            self.base = Crid(result.crid)
            return result
        finally:
            os.close(read_end)
            await asyncio.gather(running, return_exceptions=True)
            await sink.abort()


async def in_a_thread_of_its_own(run: Callable[[], Any]) -> Any:
    """A ptrace session belongs to one thread."""
    loop, done = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

    def work() -> None:
        try:
            result = run()
        except Exception as error:  # noqa: BLE001  whatever it is, it is raised where it is awaited
            loop.call_soon_threadsafe(done.set_exception, error)
        else:
            loop.call_soon_threadsafe(done.set_result, result)

    threading.Thread(target=work).start()
    return await done


KEY = PageKey()


def memory_of(path: Path) -> dict[int, bytes]:
    """Return a hash of each page in an image, which is checked in passing."""
    found = {}
    with path.open("rb") as file:
        for record in verified(ImageReader(file)):
            if isinstance(record, Pages):
                hashes, at = bytes(KEY.hashes(record.data)), 0
                for run in record.runs:
                    for page in range(run.pages):
                        found[run.address + page * PAGE_BYTES] = hashes[at:at + 16]
                        at += 16
    return found


async def stored_memory(archive: Archive, crid: int, home: Path) -> dict[int, bytes]:
    (home / "stored").write_bytes(await read_image(archive, crid))
    return memory_of(home / "stored")


def assert_alike(stored: dict[int, bytes], read: dict[int, bytes]) -> None:
    """Python writes a little to its own heap and stack between two images; all else is the same."""
    assert len(stored.keys() ^ read.keys()) < 40
    assert sum(stored[page] != read[page] for page in stored.keys() & read.keys()) < 60


def read_memory(pid: int, home: Path) -> dict[int, bytes]:
    """Return a hash of each page of a process, all of which are read."""
    with (home / "plain").open("wb") as file:
        checkpoint(pid, file.fileno(), crids=CridCounter(home / "crid"))
    return memory_of(home / "plain")


@pytest.fixture
async def taker(tmp_path: Path) -> Any:
    async with Archive(MemoryStore()) as archive:
        taker = Taker(archive, tmp_path)
        yield taker
        taker.notes.close()


@pytest.mark.parametrize("seed", range(4))
async def test_an_image_has_what_the_memory_has(taker: Taker, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    methods = set()
    with worker(tmp_path, seed) as (pid, work):
        for _ in range(8):
            result = await taker.take(pid)
            methods.add(result.method)
            stored, read = await stored_memory(taker.archive, result.crid, tmp_path), read_memory(pid, tmp_path)
            assert_alike(stored, read)
            work(chance.choice([0, 1, 30, 200]))
    assert methods == {"snapshot", "precopy"}


async def test_only_what_was_written_is_read(taker: Taker, tmp_path: Path) -> None:
    with worker(tmp_path, 1) as (pid, work):
        first = await taker.take(pid)
        assert first.method == "snapshot"
        assert taker.notes.held.keys() == {(pid, first_field(pid))}
        work(1)
        second = await taker.take(pid)
        assert second.method == "precopy"
        assert "before the stop" in second.method_reason
        assert second.memory_bytes < first.memory_bytes // 3


def first_field(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


GUARDED = """
import ctypes, mmap, os, time
ballast = bytearray(os.urandom(1 << 20) * 12)
area = mmap.mmap(-1, 8 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area[:] = b"x" * len(area)
address = ctypes.addressof(ctypes.c_char.from_buffer(area))
madvise = ctypes.CDLL(None).madvise
madvise.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
print(address if madvise(address + 2 * 4096, 3 * 4096, 102) == 0 else 0, file=open("made", "w"))
os.rename("made", "address")
while True: time.sleep(0.01)
"""


async def test_guard_regions_are_found_however_memory_is_read(taker: Taker, tmp_path: Path) -> None:
    def guards() -> list[PageRun]:
        with (tmp_path / "image").open("rb") as file:
            return [run for record in ImageReader(file) if isinstance(record, GuardRegions) for run in record.runs]

    with started(tmp_path, GUARDED) as process:
        until("the region", (tmp_path / "address").exists)
        address = int((tmp_path / "address").read_text())
        there = [PageRun(address=address + 2 * PAGE_BYTES, pages=3)] if address else []  # Linux 6.13
        for method in ("copy", "snapshot"):
            with (tmp_path / "image").open("wb") as file:
                checkpoint(process.pid, file.fileno(), crids=CridCounter(tmp_path / "crid"),
                           options=CheckpointOptions(method=method))
            assert guards() == there
        for method in ("snapshot", "precopy"):
            result = await taker.take(process.pid)
            assert result.method == method
            (tmp_path / "image").write_bytes(await read_image(taker.archive, result.crid))
            assert guards() == there


async def test_too_much_for_the_stop_is_read_from_a_snapshot(taker: Taker, tmp_path: Path) -> None:
    with Victim("rwhog", tmp_path, 64) as victim:
        await taker.take(victim.pid)
        methods = [(await taker.take(victim.pid)).method for _ in range(2)]
        assert "snapshot" in methods or not taker.notes.held
        victim.verify()


PAGES_A_MIB = 256


def writes(rwhog: Victim) -> int:
    """Return how many pages it has written so far."""
    rwhog.file("mark").touch()
    until("an answer", lambda: not rwhog.file("mark").exists())
    return int(rwhog.file("gap").read_text().split()[1])


async def test_notes_that_spare_nothing_are_given_up(taker: Taker, tmp_path: Path) -> None:
    with Victim("rwhog", tmp_path, 16) as victim:
        await taker.take(victim.pid)
        assert taker.notes.held
        before = writes(victim)
        until("all its pages to be written many times", lambda: writes(victim) > before + 20 * PAGES_A_MIB * 16)
        await taker.take(victim.pid)
        assert not taker.notes.held
        victim.verify()


@pytest.mark.parametrize("pages_a_second", [300, 20_000])
async def test_a_program_comes_back_from_images_that_follow_others(taker: Taker, tmp_path: Path,
                                                                   pages_a_second: int) -> None:
    with Victim("rwhog", tmp_path, 24, pages_a_second) as victim:
        for _ in range(5):
            result = await taker.take(victim.pid)
            await asyncio.sleep(0.1)
        victim.kill()
        (tmp_path / "image").write_bytes(await read_image(taker.archive, result.crid))
        restarted(tmp_path / "image", victim)
        await asyncio.sleep(0.5)
        victim.verify()


async def test_the_descriptors_of_the_program_stay_as_they_are(taker: Taker, tmp_path: Path) -> None:
    with worker(tmp_path, 2) as (pid, work):
        await taker.take(pid)
        until("descriptors as before", lambda: has_standard_descriptors(pid))
        work(50)
        until("descriptors as before", lambda: has_standard_descriptors(pid))


def has_standard_descriptors(pid: int) -> bool:
    """Nothing but those; for an instant the program has others itself."""
    return sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]


async def test_other_tools_and_images_without_notes_see_nothing_odd(taker: Taker, tmp_path: Path) -> None:
    with worker(tmp_path, 3) as (pid, work):
        await taker.take(pid)
        assert " uw " in Path(f"/proc/{pid}/smaps").read_text()
        assert read_memory(pid, tmp_path)
        taker.notes.close()
        assert " uw " not in Path(f"/proc/{pid}/smaps").read_text()
        work(50)
        taker.base = None
        assert (await taker.take(pid)).method == "snapshot"


async def test_an_execve_ends_the_notes(taker: Taker, tmp_path: Path) -> None:
    with started(tmp_path, "import os, sys, time\nballast = bytearray(b'x' * (16 << 20))\nopen('up', 'w').close()\n"
                 "while not os.path.exists('again'): time.sleep(0.01)\nos.unlink('again')\n"
                 "os.execv(sys.executable, [sys.executable, '-S', 'program.py'])\n") as process:
        until("start", (tmp_path / "up").exists)
        await taker.take(process.pid)
        (tmp_path / "up").unlink()
        (tmp_path / "again").touch()
        until("start", (tmp_path / "up").exists)
        for _ in range(3):
            result = await taker.take(process.pid)
            stored = await stored_memory(taker.archive, result.crid, tmp_path)
            assert_alike(stored, read_memory(process.pid, tmp_path))


async def test_a_target_that_is_killed_after_its_image(taker: Taker, tmp_path: Path) -> None:
    with worker(tmp_path, 4) as (pid, work):
        await taker.take(pid)
        work(5)
        result = await taker.take(pid, after=After.STOP)
        assert result.method == "precopy"
        until("stop", lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        os.kill(pid, signal.SIGCONT)
        work(5)


async def test_a_failed_image_leaves_the_notes_usable(taker: Taker, tmp_path: Path) -> None:
    with worker(tmp_path, 5) as (pid, work):
        await taker.take(pid)
        work(20)
        with pytest.raises(ImageSinkFull), Path("/dev/full").open("wb") as full:
            checkpoint(pid, full.fileno(), crids=CridCounter(tmp_path / "crid"), notes=taker.notes)
        work(20)
        taker.base = None  # what was noted goes back to no image that anybody has
        for _ in range(2):
            result = await taker.take(pid)
            assert_alike(await stored_memory(taker.archive, result.crid, tmp_path), read_memory(pid, tmp_path))
            work(5)


async def test_memory_that_nobody_may_read(taker: Taker, tmp_path: Path) -> None:
    source = ("import ctypes, mmap, os, time\nlibc = ctypes.CDLL(None)\n"
              "area = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
              "area[:] = b'secret' * ((16 << 20) // 6) + b'abcd'\n"
              "at = ctypes.addressof(ctypes.c_char.from_buffer(area))\n"
              "protect = lambda how: libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(16 << 20), how)\n"
              "protect(0)\nopen('up', 'w').close()\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
              "protect(3)\narea[5 << 12] = 1\nprotect(0)\nopen('written', 'w').close()\ntime.sleep(1e6)\n")
    with started(tmp_path, source) as process:
        until("start", (tmp_path / "up").exists)
        await taker.take(process.pid)
        (tmp_path / "go").touch()
        until("write", (tmp_path / "written").exists)
        result = await taker.take(process.pid)
        stored = await stored_memory(taker.archive, result.crid, tmp_path)
        assert_alike(stored, read_memory(process.pid, tmp_path))


def take_notes_for_ever(pid: int, home: Path) -> NoReturn:
    try:
        with (home / "void").open("wb") as void:
            while True:
                notes = WriteNotes()
                checkpoint(pid, void.fileno(), crids=CridCounter(home / "crid"), notes=notes)
                notes.close()
    except BaseException:  # noqa: BLE001  (a fork of the tests must not return into them)
        traceback.print_exc()
        os._exit(1)


def test_what_a_dead_tracer_leaves_is_no_descriptor(tmp_path: Path) -> None:
    """Killed at any moment of the making of the userfaultfd, the target closes it itself."""
    chance = random.Random(6)
    with worker(tmp_path, 6) as (pid, work):
        for _ in range(60):
            child = os.fork()
            if not child:
                take_notes_for_ever(pid, tmp_path)
            threading.Event().wait(chance.uniform(0.02, 0.25))
            os.kill(child, signal.SIGKILL)
            assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "a checkpoint failed by itself"
            until("end of the tracing", lambda: "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text())
            until("the way home", lambda: has_standard_descriptors(pid))
            work(1)
        with Memory(pid, writable=False) as memory:
            assert memory.read(vdso(pid)[0], 4) == b"\x7fELF"
