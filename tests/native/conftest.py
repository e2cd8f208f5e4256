"""What the tests of the native seam start."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.native import tracee
from crd.native.memory import Memory
from tests.native.selfcheck import PATIENCE_SECONDS, SelfCheck

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VICTIMS = Path(__file__).parent / "victims"


@pytest.fixture(scope="session")
def selfcheck_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("native") / "selfcheck"
    subprocess.run(["gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", program,
                    VICTIMS / "selfcheck.c"], check=True)
    return program


@pytest.fixture
def selfcheck(selfcheck_program: Path, tmp_path: Path) -> Iterator[Callable[[str], SelfCheck]]:
    """Start targets that watch themselves."""
    started: list[SelfCheck] = []

    def start(mode: str) -> SelfCheck:
        started.append(SelfCheck(selfcheck_program, tmp_path, mode))
        return started[-1]

    yield start
    for target in started:
        target.__exit__(None, None, None)


def await_read(pid: int) -> None:
    """Wait until a process waits in read(2) of its standard input."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not (now := Path(f"/proc/{pid}/syscall").read_text()).startswith("0 0x0 "):
        assert time.monotonic() < give_up_at, now
        time.sleep(0.001)


@pytest.fixture
def cat() -> Iterator[subprocess.Popen[bytes]]:
    """A program that waits in read(2) and writes what it reads."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        await_read(process.pid)
        yield process
        process.kill()


@pytest.fixture
def stopped(cat: subprocess.Popen[bytes]) -> Iterator[int]:
    """The pid of ``cat``, stopped as our tracee."""
    tracee.seize(cat.pid, tracee.OPTION_TRACESYSGOOD)
    tracee.interrupt(cat.pid)
    assert tracee.wait(cat.pid)
    yield cat.pid
    cat.kill()


@pytest.fixture
def memory(stopped: int) -> Iterator[Memory]:
    with Memory(stopped) as memory:
        yield memory
