"""Memory of other processes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from crd.errors import MemoryFault, NativeError, TargetGone, TraceeGone
from crd.native import tracee
from crd.native.memory import PAGE_BYTES, Memory, nonzero_pages, process_read_runs, process_write_runs
from crd.native.pagemap import PageMap
from tests.native.chaos import vdso

if TYPE_CHECKING:
    import subprocess

pytestmark = pytest.mark.root


@pytest.fixture
def stack(stopped: int) -> int:
    """An address in the unused part of the victim's stack, with a few pages above."""
    return tracee.get_registers(stopped).rsp - 3 * PAGE_BYTES


def test_what_is_written_is_read(memory: Memory, stack: int) -> None:
    memory.write(stack, b"some bytes")
    assert memory.read(stack, 10) == b"some bytes"


def test_runs_are_packed(memory: Memory, stack: int) -> None:
    memory.write_runs([(stack, 3), (stack + 5000, 4), (stack + 100, 0)], b"onetwo!")
    buffer = bytearray(7)
    memory.read_runs([(stack + 5000, 4), (stack, 3)], buffer)
    assert buffer == b"two!one"


def test_code_that_is_read_only_can_be_written(memory: Memory, stopped: int) -> None:
    _, end = vdso(stopped)
    memory.write(end - 8, b"padding!")
    assert memory.read(end - 8, 8) == b"padding!"


def test_a_fault_says_where(memory: Memory, stack: int) -> None:
    with pytest.raises(MemoryFault) as error:
        memory.read_runs([(stack, 8), (8192, 8)], bytearray(16))
    assert error.value.address == 8192
    with pytest.raises(MemoryFault):
        memory.write(8192, b"no")


@pytest.mark.parametrize("runs", [[(0, 1 << 62)], [(1 << 63, 8)], [((1 << 64) - 8, 16)], [(0, 1), (0, 1 << 40)]])
def test_absurd_runs_are_errors(memory: Memory, runs: list[tuple[int, int]]) -> None:
    with pytest.raises((ValueError, NativeError)):
        memory.read_runs(runs, bytearray(16))


def test_the_buffer_must_hold_the_runs(memory: Memory, stack: int) -> None:
    with pytest.raises(ValueError, match="smaller"):
        memory.read_runs([(stack, 9)], bytearray(8))


def test_a_process_that_is_gone(cat: subprocess.Popen[bytes]) -> None:
    with Memory(cat.pid) as memory, PageMap(cat.pid) as pagemap:
        cat.kill()
        cat.wait()
        with pytest.raises(TraceeGone):
            memory.read(PAGE_BYTES, 8)
        with pytest.raises(TargetGone):
            pagemap.own_pages([(0, 1 << 30)])
    with pytest.raises(TargetGone):
        Memory(cat.pid)
    with pytest.raises(TargetGone):
        PageMap(cat.pid)


def test_thousands_of_runs_at_once(stopped: int, memory: Memory, stack: int) -> None:
    runs = [(stack + 4 * index, index % 4) for index in range(2500)]
    content = bytes(index % 251 for index in range(sum(length for _, length in runs)))
    process_write_runs(stopped, runs, content)
    buffer = bytearray(len(content))
    process_read_runs(stopped, runs, buffer)
    assert buffer == content
    again = bytearray(len(content))
    memory.read_runs(runs, again)
    assert again == content


def test_a_fault_between_runs_says_where(stopped: int, stack: int) -> None:
    runs = [(stack, 8), (8192, 8), (stack, 8)]
    with pytest.raises(MemoryFault) as error:
        process_read_runs(stopped, runs, bytearray(24))
    assert error.value.address == 8192
    with pytest.raises(MemoryFault) as error:
        process_write_runs(stopped, [(stack, 8), (vdso(stopped)[0], 8)], bytes(16))
    assert error.value.address == vdso(stopped)[0]


def test_pages_with_anything_in_them() -> None:
    buffer = bytearray(PAGE_BYTES * 11)
    buffer[0] = buffer[PAGE_BYTES * 4 - 1] = buffer[PAGE_BYTES * 9 + 17] = 1
    assert [index for index, filled in enumerate(nonzero_pages(buffer)) if filled] == [0, 3, 9]
    assert nonzero_pages(b"") == []


def test_closing_twice_is_harmless() -> None:
    memory = Memory(os.getpid(), writable=False)
    memory.close()
    memory.close()
    with pytest.raises(NativeError):
        memory.read(PAGE_BYTES, 1)
