"""Vessels, the reaper, and batches of system calls in them."""

from __future__ import annotations

import os
import signal
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.errors import NativeError, PidInUse, TraceeGone
from crd.native import tracee
from crd.native.batch import Batch, Result, find_syscall, map_scratch, remote_syscall
from crd.native.memory import Memory
from crd.native.syscall import NR
from crd.native.vessel import become_reaper, spawn_vessel
from tests.native.chaos import vdso

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

SCRATCH = 0x10_0000
MAP_PRIVATE_ANONYMOUS = 0x22
SIG_IGN = 1
ALL_SIGNALS = (1 << 64) - 1
UNBLOCKABLE = 1 << signal.SIGKILL - 1 | 1 << signal.SIGSTOP - 1
ENOENT, EBADF, EINVAL = 2, 9, 22


@pytest.fixture
def vessel() -> Iterator[int]:
    """A stopped vessel that dies with us."""
    pid = spawn_vessel()
    tracee.seize(pid, tracee.OPTION_EXITKILL | tracee.OPTION_TRACESYSGOOD)
    tracee.interrupt(pid)
    assert tracee.wait(pid)
    yield pid
    end(pid)


@pytest.fixture
def batch(vessel: int) -> Iterator[Batch]:
    start, stop = vdso(vessel)
    with Memory(vessel) as memory:
        yield map_scratch(memory, vessel, SCRATCH, find_syscall(memory, start, stop - start))


def end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        tracee.wait_end(pid)
    except (ProcessLookupError, NativeError):
        return


def status(pid: int, key: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith(f"{key}:"))


def test_a_vessel_is_almost_empty(vessel: int) -> None:
    areas = [line.split() for line in Path(f"/proc/{vessel}/maps").read_text().splitlines()]
    names = {words[5] if len(words) > 5 else "" for words in areas}
    assert {name for name in names if not name.startswith("[")} == {"/memfd:crd-vessel"}
    assert len(areas) <= 6
    assert int(status(vessel, "SigBlk"), 16) == ALL_SIGNALS & ~UNBLOCKABLE
    assert int(status(vessel, "SigCgt"), 16) == 0
    assert tracee.rseq_configuration(vessel).address == 0
    assert tracee.robust_list(vessel)[0] == 0


def test_a_vessel_gets_the_number_it_is_to_have(vessel: int) -> None:
    numbers = range(int(Path("/proc/sys/kernel/pid_max").read_text()) - 1, vessel, -1)
    number = next(number for number in numbers if not Path(f"/proc/{number}").exists())
    pid = spawn_vessel(number)
    try:
        assert pid == number
        with pytest.raises(PidInUse):
            spawn_vessel(number)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_pid_that_cannot_be() -> None:
    with pytest.raises(NativeError) as error:
        spawn_vessel(1 << 30)
    assert error.value.errno == EINVAL


def test_the_reaper_ends_as_the_last_of_its_children() -> None:
    reaper = os.fork()
    if not reaper:
        if not os.fork():
            os.kill(os.getpid(), signal.SIGKILL)
        become_reaper()
    assert os.waitstatus_to_exitcode(os.waitpid(reaper, 0)[1]) == 128 + signal.SIGKILL


def test_calls_run_in_order_and_refer_to_each_other(batch: Batch, vessel: int) -> None:
    path = batch.text("/proc/self/stat")
    out = batch.data(bytes(64))
    fd = batch.call(NR.OPENAT, -100, path, os.O_RDONLY, 0)
    batch.call(0, fd, out, 64)
    batch.call(NR.CLOSE, fd)
    results = batch.run(vessel)
    assert results[0] >= 0
    assert results[2] == 0
    assert batch.read(out, 64).startswith(b"%d (" % vessel)
    assert batch.run(vessel) == []


def test_hundreds_of_calls_in_one_go(batch: Batch, vessel: int) -> None:
    for _ in range(900):
        batch.call(NR.GETPID)
    assert batch.has_room
    assert batch.run(vessel) == [vessel] * 900
    assert batch.run(vessel) == []


def test_a_failed_call_ends_the_batch(batch: Batch, vessel: int) -> None:
    batch.call(NR.GETPID)
    batch.call(NR.CLOSE, 500, what="closing a thing")
    batch.call(NR.SETSID)
    with pytest.raises(NativeError, match="closing a thing in task") as error:
        batch.run(vessel)
    assert (error.value.operation, error.value.errno, error.value.tid) == ("close", EBADF, vessel)
    assert os.getsid(vessel) == os.getsid(0)
    batch.call(NR.GETPID)
    assert batch.run(vessel) == [vessel]


def test_a_call_may_fail_if_it_is_allowed_to(batch: Batch, vessel: int) -> None:
    batch.call(NR.OPENAT, -100, batch.text("/no/such"), 0, 0, check=False)
    batch.call(NR.GETPID)
    assert batch.run(vessel) == [-ENOENT, vessel]


def test_a_result_may_be_an_address(batch: Batch, vessel: int) -> None:
    area = batch.call(NR.MMAP, 0, 4096, 3, MAP_PRIVATE_ANONYMOUS, -1, 0)
    batch.call(NR.MUNMAP, area, 4096)
    batch.call(NR.MADVISE, Result(0), 4096, 4, check=False)
    assert batch.run(vessel)[1:] == [0, -12]  # ENOMEM: it is unmapped again


def test_what_does_not_fit_is_refused(batch: Batch) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        batch.data(bytes(1 << 20))


@pytest.mark.parametrize("number", [signal.SIGTRAP, signal.SIGSTOP, signal.SIGTERM])
def test_signals_do_not_disturb_a_batch(batch: Batch, vessel: int, number: int) -> None:
    os.kill(vessel, number)
    batch.call(NR.GETPID)
    assert batch.run(vessel) == [vessel]
    batch.call(NR.GETPID)
    assert batch.run(vessel) == [vessel]


def test_a_batch_leaves_the_action_of_sigtrap_alone(batch: Batch, vessel: int) -> None:
    ignore = batch.data(struct.pack("<4Q", SIG_IGN, 0, 0, 0))
    batch.call(NR.RT_SIGACTION, signal.SIGTRAP, ignore, 0, 8)
    batch.run(vessel)
    now = batch.data(bytes(32))
    batch.call(NR.RT_SIGACTION, signal.SIGTRAP, 0, now, 8)
    batch.run(vessel)
    assert struct.unpack_from("<Q", batch.read(now, 8)) == (SIG_IGN,)


def test_a_process_that_ends_inside_a_batch(batch: Batch, vessel: int) -> None:
    batch.call(231, 3)  # exit_group
    with pytest.raises(TraceeGone):
        batch.run(vessel)


def test_one_plain_call_and_its_error(vessel: int) -> None:
    start, stop = vdso(vessel)
    with Memory(vessel) as memory:
        at = find_syscall(memory, start, stop - start)
        with pytest.raises(NativeError, match="no syscall instruction"):
            find_syscall(memory, start, 16)
    assert remote_syscall(vessel, at, NR.GETPID) == vessel
    with pytest.raises(NativeError) as error:
        remote_syscall(vessel, at, NR.CLOSE, 77)
    assert error.value.errno == EBADF
