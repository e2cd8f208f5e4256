"""What a stop would show to a program, taken back: EINTR out of nothing, a torn rseq critical section."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from crd.engine.userspace import waits
from crd.errors import NativeError

if TYPE_CHECKING:
    from crd.engine.userspace.freeze import Frozen, FrozenThread
    from crd.native.memory import Memory
    from crd.native.tracee import Registers

_EINTR = -4
_RSEQ_CS = struct.Struct("<IIQQQ")

# Calls that have done nothing when they return EINTR, which they do after any stop, though no signal came (signal(7)).
_INTERRUPTED_BY_A_STOP = {
    232,  # epoll_wait
    281,  # epoll_pwait
    441,  # epoll_pwait2
    128,  # rt_sigtimedwait
    65,  # semop
    220,  # semtimedop
    208,  # io_getevents
    426,  # io_uring_enter
    # At a socket with SO_RCVTIMEO:
    *(0, 19, 327),  # read, readv, preadv2
    *(45, 47, 299),  # recvfrom, recvmsg, recvmmsg
    *(43, 288),  # accept, accept4
    275,  # splice
    # At a socket with SO_SNDTIMEO:
    *(1, 20, 328),  # write, writev, pwritev2
    *(44, 46, 307),  # sendto, sendmsg, sendmmsg
    *(40, 42),  # sendfile, connect
}
_IO_URING_ENTER = 426


def hide(state: Frozen, thread: FrozenThread) -> None:
    """Change the registers of a stopped thread where the program would see that it was stopped."""
    registers = state.group.registers(thread.tid)
    changed = not thread.signal_due and _restart_interrupted_call(state, thread.tid, registers)
    if section := state.group.state(thread.tid).rseq_section:
        changed |= _abort_critical_section(state.memory, section, registers)
    if changed:
        state.group.set_registers(thread.tid, registers)


def _restart_interrupted_call(state: Frozen, tid: int, registers: Registers) -> bool:
    number = waits.number(registers)
    if number not in _INTERRUPTED_BY_A_STOP or registers.result != _EINTR:
        return False
    if number == _IO_URING_ENTER and registers.rsi:
        return False  # it has submitted: a second call would submit again
    lines = state.status(tid)
    pending = int(lines["SigPnd"], 16) | int(lines["ShdPnd"], 16)
    if pending & ~int(lines["SigBlk"], 16):
        return False
    if (wait := state.waits.get(tid)) and wait.is_over(registers, lines):
        return True
    registers.rax, registers.rip, registers.orig_rax = registers.orig_rax, registers.rip - 2, -1
    return True


def _abort_critical_section(memory: Memory, section: int, registers: Registers) -> bool:
    """Send a thread inside an rseq critical section to its abort handler, as the kernel would (rseq(2))."""
    try:
        _version, _flags, start, length, abort = _RSEQ_CS.unpack(memory.read(section, _RSEQ_CS.size))
    except NativeError:
        return False  # a stale pointer: the kernel would kill a thread that relied on it
    if not start <= registers.rip < start + length:
        return False
    registers.rip, registers.orig_rax = abort, -1
    return True
