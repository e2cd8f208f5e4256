"""A restart that fails half-way leaves nothing: no process, no lock, no file."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.engine.userspace import threads
from crd.errors import ImageTruncated, NativeError, RestartError, RestartUnsupported
from crd.image.objects import RegularFile
from crd.image.profile import FileDescriptor, FileLock, Profile, Thread
from tests.engine.images import changed, restarted, taken
from tests.engine.programs import interpreted
from tests.engine.restorer import Restorer
from tests.support.victims import Program, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crd.image.codec import Record

pytestmark = pytest.mark.root

HOLDER = """
import fcntl, os, threading
fd = os.open("data", os.O_RDWR | os.O_CREAT)
fcntl.flock(fd, fcntl.LOCK_EX)
ends = os.pipe()
os.write(ends[1], b"in flight")
ballast = os.urandom(8 << 20)
threading.Thread(target=rest).start()
rest()
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    """A process with two threads, a lock, a pipe and 8 MiB."""
    program = interpreted(tmp_path, HOLDER)
    with program:
        until("two threads", lambda: len(program.tasks()) == 2)
        yield program


def vessels() -> set[str]:
    """Return the processes that have been vessels, or still are."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.readlink(entry / "exe").startswith("/memfd:crd-"):
                found.add(entry.name)
    return found


def assert_nothing_is_left(program: Program, fds: list[str]) -> None:
    assert not program.is_there()
    assert not Path(f"/proc/{program.pid}/task").exists()
    assert os.listdir("/proc/self/fd") == fds
    locked = Path("/proc/locks").read_text().replace(":", " ").split()
    assert str((program.directory / "data").stat().st_ino) not in locked


def test_an_image_that_ends_among_the_pages(program: Program) -> None:
    image = taken(program)
    content = image.read_bytes()
    fds = os.listdir("/proc/self/fd")
    for length in (len(content) - 1, len(content) - 12, len(content) // 2, len(content) // 4):
        image.write_bytes(content[:length])
        with pytest.raises(ImageTruncated):
            restarted(image)
        assert_nothing_is_left(program, fds)
    image.write_bytes(content)
    restarted(image, program)


@pytest.mark.parametrize("step", ["make", "set_up", "become_itself", "set_registers"])
def test_a_step_that_fails(program: Program, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = taken(program)
    fds = os.listdir("/proc/self/fd")
    done = getattr(threads, step)

    def fail(*arguments, **named):
        done(*arguments, **named)
        raise NativeError("the machine is on fire")

    with monkeypatch.context() as broken:
        broken.setattr(threads, step, fail)
        with pytest.raises(NativeError, match="fire"):
            restarted(image)
    assert_nothing_is_left(program, fds)
    restarted(image, program)


def test_a_task_that_is_killed_while_it_is_made(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    image = taken(program)
    fds = os.listdir("/proc/self/fd")
    done = threads.make

    def kill(plan, vessel, **named):
        made = done(plan, vessel, **named)
        os.kill(vessel.pid, signal.SIGKILL)
        return made

    with monkeypatch.context() as broken:
        broken.setattr(threads, "make", kill)
        with pytest.raises((RestartError, NativeError), match=r"ended|No such process"):
            restarted(image)
    assert_nothing_is_left(program, fds)


def test_signals_that_come_while_it_is_made(program: Program) -> None:
    """Those that the program would survive are delivered to it; a stop stops it."""
    from crd.engine.api import restart

    image = taken(program)

    def disturb(result) -> None:
        os.kill(result.root_pid, signal.SIGWINCH)
        os.kill(result.root_pid, signal.SIGSTOP)

    with image.open("rb") as file:
        restart(file.fileno(), confirm=disturb)
    until("stop", lambda: program.status()["State"].startswith("T"))
    os.kill(program.pid, signal.SIGCONT)
    until("it to run", program.is_running)
    program.assert_unharmed()


@pytest.mark.parametrize("pids", ["original", "namespace"])
def test_a_restorer_that_is_killed_at_any_moment(program: Program, pids: str) -> None:
    image = taken(program)
    chance = random.Random(7)
    before = vessels()
    fds = os.listdir("/proc/self/fd")
    for _ in range(30):
        restorer = Restorer(image, pids)
        time.sleep(chance.uniform(0, 0.06))
        restorer.kill()
        until("its vessels to end", lambda: not vessels() - before)
        until("its number to be free", lambda: not program.is_there())
    assert_nothing_is_left(program, fds)
    restarted(image, program)


def test_a_restorer_that_is_killed_when_all_is_ready(program: Program) -> None:
    image = taken(program)
    before = vessels()
    for pids in ("original", "namespace"):
        restorer = Restorer(image, pids)
        restorer.wait_ready()
        restorer.kill()
        until("its vessels to end", lambda: not vessels() - before)
        until("its number to be free", lambda: not program.is_there())
    restarted(image, program)


def test_another_processor_and_another_kernel_are_refused(program: Program) -> None:
    def lose_avx512(record: Record) -> None:
        if isinstance(record, Profile):
            record.xcr0 &= ~0xE0 if record.xcr0 & 0xE0 else ~4

    def other_kernel(record: Record) -> None:
        if isinstance(record, Profile):
            record.vdso_digest = bytes(32)

    image = taken(program)
    fds = os.listdir("/proc/self/fd")
    for change, words in ((lose_avx512, "processor that differs in .*AVX"), (other_kernel, "another kernel")):
        with pytest.raises(RestartUnsupported, match=words):
            restarted(changed(image, change))
        assert_nothing_is_left(program, fds)


def high_descriptor(record: Record) -> None:
    if isinstance(record, (FileDescriptor, FileLock)) and record.fd > 2:
        record.fd += 1_000_000


def all_groups_there_are(record: Record) -> None:
    if isinstance(record, Thread):
        record.groups = tuple(range(65536))


def far_position(record: Record) -> None:
    if isinstance(record, RegularFile) and record.path.endswith("data"):
        record.position = 2**63 - 1


@pytest.mark.parametrize("change", [high_descriptor, all_groups_there_are, far_position])
def test_absurd_wishes_are_errors_of_ours(program: Program, change: Callable[[Record], None]) -> None:
    image = taken(program)
    fds = os.listdir("/proc/self/fd")
    with pytest.raises(RestartError):
        restarted(changed(image, change))
    assert_nothing_is_left(program, fds)
