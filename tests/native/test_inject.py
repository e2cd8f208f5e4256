"""System calls in a live target."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.errors import FeatureMissing, InjectionInterrupted, NativeError
from crd.native import tracee
from crd.native.inject import CALLS_MAX, SCRATCH_BYTES, Call, Injector, Scratch, home_registers
from crd.native.memory import Memory
from crd.native.syscall import NR
from crd.target.tree import has_ended
from tests.native.chaos import VARIANTS, frozen, inject_once, snapshot, vdso
from tests.native.selfcheck import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.native.selfcheck import SelfCheck

pytestmark = pytest.mark.root

TRAP_FLAG = 0x100
CODE_32_BIT = 0x23
WALL = 0x4000_0000
NOBODY = 65534


@pytest.fixture
def stubs(memory: Memory) -> Injector:
    return Injector(memory, [vdso(memory.pid)])


@pytest.fixture
def counter() -> Iterator[subprocess.Popen[bytes]]:
    """A program that answers SIGUSR1 with a line, and ends when its input does."""
    source = ("import signal, sys; signal.signal(signal.SIGUSR1, lambda *_: print('took', flush=True)); "
              "print('ready', flush=True); sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          bufsize=0) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def answers(process: subprocess.Popen[bytes]) -> None:
    """``cat`` still waits where it was, and works."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"still there\n")
    assert process.stdout.readline() == b"still there\n"


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def await_state(pid: int, state: str) -> None:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while (now := Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]) != state:
        assert time.monotonic() < give_up_at, f"{pid} is {now}, not {state}"
        time.sleep(0.001)


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    stop = tracee.wait(child)
    assert stop.ended


def test_results_and_output_come_back(stubs: Injector, stopped: int) -> None:
    original = tracee.get_registers(stopped)

    done = stubs.script(stopped, original, [
        Call(NR.GETPID), Call(NR.CLOSE, (987,)), Call(NR.SIGALTSTACK, (0, Scratch(256)))])

    assert done.results == (stopped, -9, 0)
    assert len(done.scratch) == SCRATCH_BYTES
    assert struct.unpack_from("<QI", done.scratch, 256) == (0, 2)  # no alternate stack: SS_DISABLE


def test_the_target_is_where_it_was(stubs: Injector, stopped: int, cat: subprocess.Popen[bytes]) -> None:
    original, maps = tracee.get_registers(stopped), Path(f"/proc/{stopped}/maps").read_text()
    xstate, mask = tracee.get_xstate(stopped), tracee.get_signal_mask(stopped)

    for _ in range(5):
        stubs.script(stopped, original, [Call(NR.GETPID)] * CALLS_MAX)
        kill(snapshot(stubs, stopped, original))

    assert tracee.get_registers(stopped) == original
    assert tracee.get_xstate(stopped) == xstate
    assert tracee.get_signal_mask(stopped) == mask
    assert Path(f"/proc/{stopped}/maps").read_text() == maps
    assert Path(f"/proc/{stopped}/task/{stopped}/children").read_text() == ""
    tracee.detach(stopped)
    answers(cat)


def test_too_many_calls_are_refused(stubs: Injector, stopped: int) -> None:
    with pytest.raises(ValueError, match="too many calls"):
        stubs.script(stopped, tracee.get_registers(stopped), [Call(NR.GETPID)] * (CALLS_MAX + 1))


def test_a_queued_signal_waits_until_the_thread_is_home(counter: subprocess.Popen[bytes]) -> None:
    with Memory(counter.pid) as memory, frozen(counter.pid) as threads:
        stubs = Injector(memory, [vdso(counter.pid)])
        mask = tracee.get_signal_mask(counter.pid)
        os.kill(counter.pid, signal.SIGUSR1)
        for _ in range(3):
            assert stubs.script(counter.pid, threads[counter.pid], [Call(NR.GETPID)]).results == (counter.pid,)
            kill(snapshot(stubs, counter.pid, threads[counter.pid]))
        assert tracee.get_registers(counter.pid) == threads[counter.pid]
        assert tracee.get_signal_mask(counter.pid) == mask
        assert len(tracee.peek_siginfo(counter.pid, shared=True)) == 1
    assert counter.stdout
    assert counter.stdout.readline() == b"took\n"


def test_no_stub_from_a_signal_delivery_stop(counter: subprocess.Popen[bytes]) -> None:
    tracee.seize(counter.pid, tracee.OPTION_TRACESYSGOOD)
    os.kill(counter.pid, signal.SIGUSR1)
    stop = tracee.wait(counter.pid)
    assert stop.is_signal
    with Memory(counter.pid) as memory:
        stubs = Injector(memory, [vdso(counter.pid)])
        with pytest.raises(InjectionInterrupted):
            stubs.script(counter.pid, tracee.get_registers(counter.pid), [Call(NR.GETPID)])
    tracee.detach(counter.pid, stop.signal)
    assert counter.stdout
    assert counter.stdout.readline() == b"took\n"


def test_a_signal_survives_the_tracer_that_saw_it(counter: subprocess.Popen[bytes]) -> None:
    tracer = os.fork()
    if not tracer:
        tracee.seize(counter.pid)
        os.kill(counter.pid, signal.SIGUSR1)
        tracee.wait(counter.pid)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(tracer, 0)[1])
    assert counter.stdout
    assert counter.stdout.readline() == b"took\n"


def test_a_job_control_stop_stays(cat: subprocess.Popen[bytes]) -> None:
    os.kill(cat.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, cat.pid, os.WSTOPPED)
    with Memory(cat.pid) as memory, frozen(cat.pid) as threads:
        stubs = Injector(memory, [vdso(cat.pid)])
        assert stubs.script(cat.pid, threads[cat.pid], [Call(NR.GETPID)]).results == (cat.pid,)
        kill(snapshot(stubs, cat.pid, threads[cat.pid]))
    await_state(cat.pid, "T")
    os.kill(cat.pid, signal.SIGCONT)
    answers(cat)


def test_the_snapshot_keeps_what_was(stubs: Injector, stopped: int, memory: Memory) -> None:
    registers = tracee.get_registers(stopped)
    memory.write(registers.rsp - 4096, b"as it was")

    child = snapshot(stubs, stopped, registers)

    memory.write(registers.rsp - 4096, b"otherwise")
    with Memory(child, writable=False) as copy:
        assert copy.read(registers.rsp - 4096, 9) == b"as it was"
    assert tracee.get_signal_mask(child) | 1 << 8 | 1 << 18 == (1 << 64) - 1
    kill(child)


def test_the_snapshot_is_made_in_haste_and_does_not_inherit_that(stubs: Injector, stopped: int) -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        child = snapshot(stubs, stopped, tracee.get_registers(stopped))
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    assert os.sched_getscheduler(child) == os.sched_getscheduler(stopped) == os.SCHED_OTHER
    kill(child)


def test_a_snapshot_that_is_called_off_while_it_is_made_leaves_nobody(cat: subprocess.Popen[bytes]) -> None:
    with Memory(cat.pid) as memory, frozen(cat.pid) as threads:
        family = Injector(memory, [vdso(cat.pid)]).begin_snapshot(cat.pid, threads[cat.pid])
        family.kill()
        assert has_ended(family.child)
        assert tracee.wait(cat.pid).is_syscall  # only who has stopped can be let go
    answers(cat)
    assert Path(f"/proc/{cat.pid}/task/{cat.pid}/children").read_text() == ""


def test_a_child_of_the_target_is_reaped_there(stubs: Injector, stopped: int) -> None:
    original = tracee.get_registers(stopped)
    child = snapshot(stubs, stopped, original, child_of_target=True)
    assert parent_of(child) == stopped
    kill(child)
    done = stubs.script(stopped, original, [Call(NR.WAIT4, (-1, 0, 1, 0)), Call(NR.WAIT4, (child, 0, WALL, 0))])
    assert done.results == (-10, child)  # ECHILD: wait(2) does not see it


def test_a_target_that_cannot_be_forked() -> None:
    with subprocess.Popen(["bash", "-c", "ulimit -u 1; echo ready; exec cat"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, bufsize=0, user=NOBODY) as cat:
        assert cat.stdout
        assert cat.stdout.readline() == b"ready\n"
        answers(cat)
        with Memory(cat.pid) as memory, frozen(cat.pid) as threads:
            stubs = Injector(memory, [vdso(cat.pid)])
            with pytest.raises(NativeError) as error:
                snapshot(stubs, cat.pid, threads[cat.pid])
            assert tracee.get_registers(cat.pid) == threads[cat.pid]
        assert (error.value.operation, error.value.errno) == ("clone", 11)
        answers(cat)
        cat.kill()


def test_the_room_is_known_to_the_next_tracer(stubs: Injector, stopped: int, memory: Memory) -> None:
    registers = tracee.get_registers(stopped)
    assert not stubs.inside(registers.rip)
    stubs.script(stopped, registers, [])
    start, end = vdso(stopped)
    later = Injector(memory, [(start, end)])
    places = [address for address in range(start, end) if later.inside(address)]
    assert places
    assert all(map(stubs.inside, places))


def test_a_target_without_room(memory: Memory, stopped: int) -> None:
    registers = tracee.get_registers(stopped)
    page = registers.rip & ~0xFFF
    with pytest.raises(FeatureMissing, match="no padding"):
        Injector(memory, [(page, page + 64), (4096, 8192)])


@pytest.mark.parametrize("change", [{"eflags": TRAP_FLAG}, {"cs": CODE_32_BIT}])
def test_threads_that_no_stub_can_bring_home(stubs: Injector, stopped: int, change: dict[str, int]) -> None:
    registers = tracee.get_registers(stopped)
    for name, value in change.items():
        setattr(registers, name, value)
    with pytest.raises(FeatureMissing):
        stubs.script(stopped, registers, [])


def test_home_registers_restart_a_call_as_the_kernel_would(stopped: int) -> None:
    registers = tracee.get_registers(stopped)
    registers.orig_rax = 7
    for result, rax in ((-512, 7), (-514, 7), (-516, NR.RESTART_SYSCALL)):
        registers.rax = result & (1 << 64) - 1
        home = home_registers(registers)
        assert (home.rax, home.rip, home.orig_rax) == (rax, registers.rip - 2, (1 << 64) - 1)
    registers.rax = -4 & (1 << 64) - 1
    home = home_registers(registers)
    assert (home.rax, home.rip, home.orig_rax) == (registers.rax, registers.rip, (1 << 64) - 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_blocking_calls_do_not_notice(selfcheck: Callable[[str], SelfCheck], variant: str) -> None:
    target, chance = selfcheck("block"), random.Random(7)
    assert sum(inject_once(target.pid, variant, chance) for _ in range(40)) == 40
    target.goes_on()
    assert target.end() == 0
    assert target.errors() == {}
