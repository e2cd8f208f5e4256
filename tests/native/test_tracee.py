"""ptrace(2), call by call."""

from __future__ import annotations

import os
import signal
import struct
import time
from typing import TYPE_CHECKING

import pytest

from crd.errors import NativeError, TraceDenied, TraceeGone
from crd.native import tracee
from crd.native.tracee import Registers, Stop

if TYPE_CHECKING:
    import subprocess

    from crd.native.memory import Memory

pytestmark = pytest.mark.root

USR1 = 1 << signal.SIGUSR1 - 1
READ = 0


def test_registers_have_the_layout_of_the_kernel() -> None:
    data = bytes(range(216))
    registers = Registers.from_bytes(data)
    assert registers.r15 == int.from_bytes(data[:8], "little")
    assert registers.orig_rax == int.from_bytes(data[120:128], "little")
    assert registers.gs == int.from_bytes(data[208:], "little")
    assert registers.to_bytes() == data
    registers.orig_rax = -1
    assert registers.to_bytes()[120:128] == b"\xff" * 8


def test_a_copy_of_registers_is_its_own() -> None:
    registers = Registers.from_bytes(bytes(216))
    copy = registers.copy()
    copy.rip = 1
    assert registers.rip == 0


@pytest.mark.parametrize(("status", "facts"), [
    (0x0000, {"ended"}),
    (0x0009, {"ended"}),
    (0x057F, {"stopped", "is_signal"}),
    (0x857F, {"stopped", "is_syscall"}),
    (0x80057F, {"stopped", "is_event_stop"}),
    (0x80137F, {"stopped", "is_event_stop", "is_group_stop"}),
    (0x03057F, {"stopped"}),
])
def test_what_a_status_word_says(status: int, facts: set[str]) -> None:
    stop = Stop(1, status)
    names = ("ended", "stopped", "is_signal", "is_syscall", "is_event_stop", "is_group_stop")
    assert {name for name in names if getattr(stop, name)} == facts


def test_a_stop_inside_a_call_shows_it(stopped: int) -> None:
    registers = tracee.get_registers(stopped)
    assert registers.in_syscall
    assert registers.orig_rax == READ
    assert registers.result == -512  # ERESTARTSYS


def test_registers_are_set_all_at_once(stopped: int) -> None:
    original = tracee.get_registers(stopped)
    changed = original.copy()
    changed.rbx, changed.r15 = 0x1234, (1 << 64) - 1
    tracee.set_registers(stopped, changed)
    assert tracee.get_registers(stopped) == changed
    tracee.set_registers(stopped, original)


def test_a_register_that_no_program_may_have_is_refused(stopped: int) -> None:
    registers = tracee.get_registers(stopped)
    registers.cs = 0
    with pytest.raises(NativeError):
        tracee.set_registers(stopped, registers)


def test_the_extended_state_goes_in_as_it_came_out(stopped: int) -> None:
    state = tracee.get_xstate(stopped)
    assert len(state) >= 576
    changed = bytearray(state)
    changed[160:176] = b"sixteen bytes xm"
    changed[512] |= 2  # XSTATE_BV: the SSE state is there
    tracee.set_xstate(stopped, bytes(changed))
    assert tracee.get_xstate(stopped)[160:176] == b"sixteen bytes xm"
    with pytest.raises(NativeError):
        tracee.set_xstate(stopped, state[:100])


def test_the_signal_mask(stopped: int) -> None:
    before = tracee.get_signal_mask(stopped)
    tracee.set_signal_mask(stopped, before | USR1)
    assert tracee.get_signal_mask(stopped) == before | USR1
    tracee.set_signal_mask(stopped, before)


def test_pending_signals_are_seen(stopped: int) -> None:
    tracee.set_signal_mask(stopped, USR1)
    os.kill(stopped, signal.SIGUSR1)
    queued = tracee.peek_siginfo(stopped, shared=True)
    assert [struct.unpack_from("<3i4xi", info) for info in queued] == [(signal.SIGUSR1, 0, 0, os.getpid())]
    assert tracee.peek_siginfo(stopped, shared=False) == []


def test_the_first_signal_can_be_looked_at_and_dropped(stopped: int) -> None:
    os.kill(stopped, signal.SIGUSR1)
    tracee.cont(stopped)
    stop = tracee.wait(stopped)
    assert stop.is_signal
    assert tracee.wait(stopped) == stop, "it stays until the tracee is let go"
    assert struct.unpack_from("<i", tracee.get_siginfo(stopped)) == (signal.SIGUSR1,)
    tracee.cont(stopped)
    assert tracee.wait_until(time.monotonic() + 0.02, stopped) is None


def test_system_call_stops_are_counted(stopped: int, cat: subprocess.Popen[bytes]) -> None:
    assert cat.stdin
    cat.stdin.write(b"word\n")
    stop = tracee.syscall_stops(stopped, 3)  # read again: entry and exit; write: entry
    assert stop.is_syscall
    assert tracee.get_registers(stopped).orig_rax == 1


def test_a_signal_ends_the_counting(stopped: int) -> None:
    os.kill(stopped, signal.SIGUSR1)
    stop = tracee.syscall_stops(stopped, 2)
    assert (stop.is_signal, stop.signal) == (True, signal.SIGUSR1)


def test_the_end_of_a_tracee_is_a_stop_like_others(stopped: int) -> None:
    os.kill(stopped, signal.SIGKILL)
    stop = tracee.wait()
    assert stop == Stop(stopped, signal.SIGKILL)
    assert stop.ended
    with pytest.raises(TraceeGone):
        tracee.get_registers(stopped)


def test_waiting_ends_at_the_deadline(cat: subprocess.Popen[bytes]) -> None:
    tracee.seize(cat.pid)
    deadline = time.monotonic() + 0.02
    assert tracee.wait_until(deadline, cat.pid) is None
    assert time.monotonic() >= deadline - 0.001
    assert tracee.wait_until(0, cat.pid) is None


def test_waiting_for_a_stranger_is_an_error() -> None:
    with pytest.raises(NativeError) as error:
        tracee.wait(1)
    assert error.value.errno == 10  # ECHILD
    assert error.value.tid == 1


def test_what_may_not_be_traced() -> None:
    with pytest.raises(TraceDenied) as error:
        tracee.seize(os.getpid())
    assert error.value.operation == "ptrace SEIZE"


def test_who_is_not_there(cat: subprocess.Popen[bytes]) -> None:
    with pytest.raises(TraceeGone):
        tracee.get_registers(cat.pid)  # not stopped: the kernel does not tell the difference


def test_a_tracee_dies_with_its_tracer(cat: subprocess.Popen[bytes]) -> None:
    tracer = os.fork()
    if not tracer:
        tracee.seize(cat.pid, tracee.OPTION_EXITKILL)
        os._exit(0)
    assert os.waitpid(tracer, 0)[1] == 0
    assert cat.wait() == -signal.SIGKILL


def test_rseq_and_robust_list_are_what_libc_registered(stopped: int, memory: Memory) -> None:
    rseq = tracee.rseq_configuration(stopped)
    assert rseq.address == 0 or (rseq.bytes >= 32 and memory.read(rseq.address, 32))
    head, length = tracee.robust_list(stopped)
    assert length == 24
    assert int.from_bytes(memory.read(head, 8), "little") == head  # empty: it points to itself
