"""The contract of sys_checkpoint and sys_restart (spec sections 1 and 5), whoever serves them."""

from __future__ import annotations

import errno
import io
import os
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.image.inspect import inspect
from tests.contracts.call_engines import ENGINES, CallEngine
from tests.support.victims import Program, sleep, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root
_FREEZER = Path("/sys/fs/cgroup/freezer/tasks")
NOBODY = 2**22 - 1


def _marks(name: str) -> list[pytest.MarkDecorator]:
    """A Linux-CR kernel saves frozen tasks only."""
    absent = name.startswith("kernel") and not _FREEZER.exists()
    return [pytest.mark.beside, pytest.mark.skip(reason=f"no freezer cgroup at {_FREEZER.parent}")] if absent else []


@pytest.fixture(params=[pytest.param(name, marks=_marks(name)) for name in ENGINES])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CallEngine]:
    made = ENGINES[request.param](tmp_path)
    yield made
    made.release()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    with sleep(tmp_path, 60) as program:
        yield program
        program.assert_unharmed()


@pytest.fixture
def image(engine: CallEngine, tmp_path: Path) -> Path:
    """Of a program that is gone, so that its pid is free."""
    (home := tmp_path / "saved").mkdir()
    with sleep(home, 60) as program, (tmp_path / "image").open("wb") as file:
        engine.checkpoint(program.pid, file.fileno())
        program.assert_unharmed()
    return tmp_path / "image"


@contextmanager
def refused(*numbers: int) -> Iterator[None]:
    with pytest.raises(OSError) as raised:
        yield
    assert errno.errorcode[raised.value.errno] in [errno.errorcode[number] for number in numbers], raised.value


def whole(data: bytes) -> bool:
    found = inspect(io.BytesIO(data))
    return found.whole and not found.trailing_bytes


class Reader(threading.Thread):
    """Reads a descriptor to its end, in small bites."""

    def __init__(self, fd: int, *, seconds_before: float = 0.0) -> None:
        super().__init__()
        self.fd, self.seconds_before, self.data = fd, seconds_before, bytearray()
        self.start()

    def run(self) -> None:
        time.sleep(self.seconds_before)
        while chunk := os.read(self.fd, 1021):
            self.data += chunk
        os.close(self.fd)


class TestCheckpoint:
    def test_wrong_flags_before_anything_else(self, engine: CallEngine) -> None:
        for flags in (2, 1 << 31, 1 << 63):
            with refused(errno.EINVAL):
                engine.checkpoint(NOBODY, 1 << 20, flags)

    def test_a_descriptor_that_is_not_open(self, engine: CallEngine, program: Program) -> None:
        for fd in (1 << 20, 1 << 15):
            with refused(errno.EBADF):
                engine.checkpoint(program.pid, fd)

    def test_a_descriptor_that_is_not_for_writing(self, engine: CallEngine, program: Program) -> None:
        with open(os.devnull, "rb") as null, refused(errno.EBADF):
            engine.checkpoint(program.pid, null.fileno())

    def test_no_such_process(self, engine: CallEngine, tmp_path: Path) -> None:
        with (tmp_path / "image").open("wb") as file:
            with refused(errno.ESRCH):
                engine.checkpoint(NOBODY, file.fileno())
            assert file.tell() == 0

    def test_a_process_that_has_ended(self, engine: CallEngine) -> None:
        child = subprocess.Popen(["true"])
        until("zombie", lambda: Path(f"/proc/{child.pid}/stat").read_text().split(")")[1].split()[0] == "Z")
        with open(os.devnull, "wb") as null, refused(errno.EAGAIN, errno.ESRCH):  # section 5.4, and D11 of real kernels
            engine.checkpoint(child.pid, null.fileno())
        child.wait()

    def test_crids_ascend_and_no_failure_takes_one(self, engine: CallEngine, program: Program) -> None:
        with open(os.devnull, "wb") as null:
            first = engine.checkpoint(program.pid, null.fileno())
            assert first > 0
            with refused(errno.ESRCH):
                engine.checkpoint(NOBODY, null.fileno())
            assert [engine.checkpoint(program.pid, null.fileno()) for _ in range(2)] == [first + 1, first + 2]

    def test_two_images_in_one_file(self, engine: CallEngine, program: Program, tmp_path: Path) -> None:
        with (tmp_path / "image").open("wb") as file:
            engine.checkpoint(program.pid, file.fileno())
            end = os.lseek(file.fileno(), 0, os.SEEK_CUR)
            engine.checkpoint(program.pid, file.fileno())
        data = (tmp_path / "image").read_bytes()
        assert whole(data[:end])
        assert whole(data[end:])

    def test_a_pipe_that_is_read_late_and_in_bites(self, engine: CallEngine, program: Program) -> None:
        read_end, write_end = os.pipe()
        reader = Reader(read_end, seconds_before=0.3)
        engine.checkpoint(program.pid, write_end)
        os.close(write_end)
        reader.join()
        assert whole(bytes(reader.data))

    def test_a_socket(self, engine: CallEngine, program: Program) -> None:
        ours, theirs = socket.socketpair()
        reader = Reader(ours.detach())
        engine.checkpoint(program.pid, theirs.fileno())
        theirs.close()
        reader.join()
        assert whole(bytes(reader.data))

    def test_eagain_is_tried_again(self, engine: CallEngine, program: Program) -> None:
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        os.write(write_end, bytes(4096))
        reader = Reader(read_end, seconds_before=0.3)
        engine.checkpoint(program.pid, write_end)
        os.close(write_end)
        reader.join()
        assert whole(bytes(reader.data[4096:]))

    def test_nobody_reads(self, engine: CallEngine, program: Program) -> None:
        read_end, write_end = os.pipe()
        os.close(read_end)
        with refused(errno.EPIPE):
            engine.checkpoint(program.pid, write_end)
        os.close(write_end)

    def test_no_space(self, engine: CallEngine, program: Program) -> None:
        with open("/dev/full", "wb", buffering=0) as full, refused(errno.ENOSPC):
            engine.checkpoint(program.pid, full.fileno())

    def test_the_target_runs_on(self, engine: CallEngine, program: Program, tmp_path: Path) -> None:
        with (tmp_path / "image").open("wb") as file:
            engine.checkpoint(program.pid, file.fileno())
        assert whole((tmp_path / "image").read_bytes())
        assert program.status()["TracerPid"] == "0"
        assert "crd-" not in Path(f"/proc/{program.pid}/cgroup").read_text()
        until("its sleep", lambda: program.status()["State"].startswith("S"))

    def test_of_itself_it_returns_in_three_ways(self, engine: CallEngine, tmp_path: Path) -> None:
        if not engine.serves_self:
            with refused(errno.ENOSYS):
                engine.checkpoint_self(1)
            return
        with (tmp_path / "image").open("wb") as file:
            assert engine.checkpoint_self(file.fileno()) > 0
        assert whole((tmp_path / "image").read_bytes())
        with refused(errno.EBADF):
            engine.checkpoint_self(1 << 20)
        with (tmp_path / "image").open("rb") as file:
            assert engine.returned_in_the_copy(file.fileno()) == 0


class TestRestart:
    def test_wrong_flags_before_anything_else(self, engine: CallEngine) -> None:
        for flags in (2, 1 << 31, 1 << 63):
            with refused(errno.EINVAL):
                engine.restart(1 << 20, flags)

    def test_a_descriptor_that_is_not_open(self, engine: CallEngine) -> None:
        with refused(errno.EBADF):
            engine.restart(1 << 20)

    def test_a_descriptor_that_is_not_for_reading(self, engine: CallEngine) -> None:
        with open(os.devnull, "wb") as null, refused(errno.EBADF):
            engine.restart(null.fileno())

    def test_the_task_runs(self, engine: CallEngine, image: Path) -> None:
        with image.open("rb") as file:
            pid = engine.restart(file.fileno())
        until("name", lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
        until("rest", lambda: Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "S")

    def test_from_a_pipe(self, engine: CallEngine, image: Path) -> None:
        with subprocess.Popen(["cat", image], stdout=subprocess.PIPE) as cat:
            assert cat.stdout
            pid = engine.restart(cat.stdout.fileno())
            os.kill(pid, 0)

    def test_an_early_end(self, engine: CallEngine, image: Path, tmp_path: Path) -> None:
        data = image.read_bytes()
        for n_bytes in (0, 7, 40, 200, 290, len(data) // 2, len(data) - 1):
            (tmp_path / "cut").write_bytes(data[:n_bytes])
            with (tmp_path / "cut").open("rb") as file, refused(errno.EPIPE):
                engine.restart(file.fileno())

    @pytest.mark.parametrize("offset", [0, 4, 8])
    def test_a_damaged_header(self, engine: CallEngine, image: Path, tmp_path: Path, offset: int) -> None:
        data = bytearray(image.read_bytes())
        data[offset] ^= 0x10
        (tmp_path / "damaged").write_bytes(data)
        with (tmp_path / "damaged").open("rb") as file, refused(errno.EINVAL):
            engine.restart(file.fileno())

    def test_what_follows_the_tail_does_not_matter(self, engine: CallEngine, image: Path) -> None:
        with image.open("ab") as file:
            file.write(b"checkpoint id 1\n")
        with image.open("rb") as file:
            os.kill(engine.restart(file.fileno()), 0)
