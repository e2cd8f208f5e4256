"""What a target does between the look at it and its stop, or once it runs again, does not get lost."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from crd.engine.api import CheckpointOptions, checkpoint
from crd.engine.crid import CridCounter
from crd.engine.stream import DescriptorSink
from crd.engine.userspace import capture as capturing
from crd.engine.userspace.dump import dumped
from crd.errors import TargetUnsupported
from crd.image.profile import MemoryLayout, Pages, Thread, Vma
from crd.image.reader import ImageReader
from crd.target import procfs
from tests.engine.programs import THREADS_COME_AND_GO, WITHOUT_VDSO, compiled, interpreted
from tests.support.victims import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.victims import Program

pytestmark = pytest.mark.root

AREA = """
import ctypes, mmap, signal
libc = ctypes.CDLL(None, use_errno=True)
area = mmap.mmap(-1, 1 << 16, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area[:] = b"x" * len(area)
address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(area)))
open("address", "w").write(str(address.value))
"""
SECCOMP = """
import ctypes, struct
PRCTL, CLONE = 157, 56
program = b"".join(struct.pack("<HBBI", *line) for line in [
    (0x20, 0, 0, 0),  # load the number of the call
    (0x15, 1, 0, PRCTL), (0x15, 0, 1, CLONE), (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7FFF0000)])
code = ctypes.create_string_buffer(program)
filter = ctypes.create_string_buffer(struct.pack("<H6xQ", len(program) // 8, ctypes.addressof(code)))
prctl = ctypes.CDLL(None).prctl
assert prctl(38, 1, 0, 0, 0) == 0
assert prctl(22, 2, filter, 0, 0) == 0
rest()
"""


def take(program: Program, method: str = "auto") -> Path:
    image = program.directory / f"{method}.image"
    with image.open("wb") as file:
        checkpoint(program.pid, file.fileno(), crids=CridCounter(program.directory / "crid"),
                   options=CheckpointOptions(method=method))
    return image


def records(image: Path, kind: type[Any]) -> list[Any]:
    with image.open("rb") as file:
        return [record for record in ImageReader(file) if isinstance(record, kind)]


def content(image: Path, address: int, length: int) -> bytes:
    """Return what the image has of private memory; nothing where it has no page."""
    found = b""
    with image.open("rb") as file:
        for record in ImageReader(file):
            if isinstance(record, Pages):
                at = 0
                for run in record.runs:
                    for page in range(run.address, run.address + run.pages * 4096, 4096):
                        if address <= page < address + length:
                            found += record.data[at:at + 4096]
                        at += 4096
    return found


def once_after_the_look(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> list[int]:
    """Do something when the target has been looked at for the first time, before it is stopped; count the looks."""
    looks: list[int] = []
    look = capturing.know

    def know(pid: int) -> capturing.Known:
        known = look(pid)
        if not looks:
            act()
        looks.append(pid)
        return known

    monkeypatch.setattr(capturing, "know", know)
    return looks


def test_attributes_that_change_before_the_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with interpreted(tmp_path, "rest()") as program:
        looks = once_after_the_look(monkeypatch, lambda: os.setpriority(os.PRIO_PROCESS, program.pid, 7))
        assert [thread.nice for thread in records(take(program), Thread)] == [7]
        assert len(looks) == 2
        program.assert_unharmed()


@pytest.mark.parametrize(("advice", "flag"), [(18, "wf"), (10, "dc")])
def test_memory_that_a_child_would_lack_from_now_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, advice: int,
                                                   flag: str) -> None:
    """MADV_WIPEONFORK, MADV_DONTFORK."""
    with interpreted(tmp_path, AREA + f"""
def advise(*_):
    assert libc.madvise(address, len(area), {advice}) == 0
    open("advised", "w").close()
signal.signal(signal.SIGUSR1, advise)
rest()
""") as program:
        def advise() -> None:
            os.kill(program.pid, signal.SIGUSR1)
            until("the advice", (tmp_path / "advised").exists)

        looks = once_after_the_look(monkeypatch, advise)
        image = take(program, "snapshot")
        address = int((tmp_path / "address").read_text())
        assert content(image, address, 1 << 16) == b"x" * (1 << 16)
        [area] = [vma for vma in records(image, Vma) if vma.start == address]
        assert flag in area.flags.split()
        assert len(looks) == 2
        program.assert_unharmed()


@pytest.mark.parametrize("method", ["snapshot", "copy"])
def test_locked_memory_is_known_as_such(tmp_path: Path, method: str) -> None:
    with interpreted(tmp_path, AREA + "assert libc.mlock(address, ctypes.c_size_t(8192)) == 0\nrest()") as program:
        address = int((tmp_path / "address").read_text())
        locked = [(vma.start, vma.end) for vma in records(take(program, method), Vma) if "lo" in vma.flags.split()]
        assert locked == [(address, address + 8192)]


def dump_without_preflight(program: Program) -> None:
    with open(os.devnull, "wb") as null, dumped(program.pid, DescriptorSink(null.fileno()), CheckpointOptions(),
                                                hold=False):
        pass


@pytest.mark.parametrize("who", ["", "import os\nif os.fork(): rest()\n"])
def test_what_came_after_the_preflight_is_refused_unharmed(tmp_path: Path, who: str) -> None:
    with interpreted(tmp_path, who + SECCOMP) as program:
        until("the filter", lambda: all("Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()
                                        for pid in (procfs.children(program.pid) if who else [program.pid])))
        with pytest.raises(TargetUnsupported) as refused:
            dump_without_preflight(program)
        assert [reason.code for reason in refused.value.reasons] == ["task.seccomp"]
        program.assert_unharmed()


def test_threads_that_come_and_go(tmp_path: Path) -> None:
    with compiled(tmp_path, THREADS_COME_AND_GO) as program:
        for _ in range(40):
            assert 1 <= len(records(take(program), Thread)) <= 9
        program.assert_unharmed()


def test_a_target_that_gets_signals_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with interpreted(tmp_path, """
import signal
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
rest()
""") as program:
        looks = once_after_the_look(monkeypatch, lambda: None)
        for _ in range(10):
            take(program)
        assert len(looks) < 20, "a queued signal is no reason to try again"
        program.assert_unharmed()


def users_of(number: int) -> list[str]:
    """Return who has the number as process, process group or session."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            name, _, fields = (path / "stat").read_text().rpartition(")")
            if str(number) in {path.name, *fields.split()[2:4]}:
                found.append(name)
    return found


def test_nothing_of_the_target_is_kept_by_the_writing_of_its_image(tmp_path: Path) -> None:
    with interpreted(tmp_path, """
import fcntl
ballast = [bytes([i]) * 65536 for i in range(1, 200)]
files = [open(name, "w") for name in ("flock", "posix")]
fcntl.flock(files[0], fcntl.LOCK_EX)
fcntl.lockf(files[1], fcntl.LOCK_EX)
rest()
""") as program:
        read_end, write_end = os.pipe()
        child = os.fork()
        if not child:
            os.close(read_end)
            try:
                checkpoint(program.pid, write_end, crids=CridCounter(tmp_path / "crid"))
            finally:
                os._exit(1)  # not reached: nobody reads all of it
        os.close(write_end)
        try:
            assert os.read(read_end, 1000), "the target runs again, and its image is being written"
            program.assert_untraced()
            program.kill()
            assert users_of(program.pid) == []
            for name, lock in (("flock", fcntl.flock), ("posix", fcntl.lockf)):
                with (tmp_path / name).open("r+") as file:
                    lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(read_end)


def test_a_sink_above_descriptor_1023_that_is_not_always_ready() -> None:
    read_end, write_end = os.pipe()
    high = fcntl.fcntl(write_end, fcntl.F_DUPFD_CLOEXEC, 2000)
    os.close(write_end)
    os.set_blocking(high, False)
    sent, got = os.urandom(3 << 20), bytearray()

    def read() -> None:
        while part := os.read(read_end, 1 << 16):
            got.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    DescriptorSink(high).write(sent[:1 << 20], sent[1 << 20:])
    os.close(high)
    reader.join()
    os.close(read_end)
    assert got == sent



def test_a_target_without_a_vdso(tmp_path: Path) -> None:
    with compiled(tmp_path, WITHOUT_VDSO) as program:
        image = take(program, "snapshot")
        assert [record.vdso_bytes for record in records(image, MemoryLayout)] == [0]
        program.assert_unharmed()


MAPS_NOTHING = """
import resource
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096, pages * 4096))
rest()
"""


@pytest.mark.parametrize("threads", [0, 5])
def test_a_program_with_no_room_for_us_is_refused_unharmed(tmp_path: Path, threads: int) -> None:
    others = ("import threading, time\n"
              f"for _ in range({threads}): threading.Thread(target=time.sleep, args=(1e6,)).start()")
    with interpreted(tmp_path, others + MAPS_NOTHING) as program:
        maps = Path(f"/proc/{program.pid}/maps").read_text()
        for method in ("auto", "copy"):
            with pytest.raises(TargetUnsupported) as refused:
                take(program, method)
            assert [reason.code for reason in refused.value.reasons] == ["memory.no-room"]
        assert Path(f"/proc/{program.pid}/maps").read_text() == maps
        program.assert_unharmed()
