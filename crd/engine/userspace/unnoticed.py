"""What a stop would show to a program, taken back: EINTR out of nothing, a torn rseq critical section."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from crd.errors import NativeError
from crd.native import tracee
from crd.target import procfs

if TYPE_CHECKING:
    from crd.engine.userspace.freeze import Frozen, FrozenThread
    from crd.native.memory import Memory

_EINTR = -4
_RSEQ_CS = struct.Struct("<IIQQQ")

# Calls that return EINTR to the program because of any stop, though no signal came (engine.md C8).
_INTERRUPTED_BY_A_STOP = {
    232,  # epoll_wait
    281,  # epoll_pwait
    441,  # epoll_pwait2
    128,  # rt_sigtimedwait
    65,  # semop
    220,  # semtimedop
    45,  # recvfrom with SO_RCVTIMEO
    47,  # recvmsg with SO_RCVTIMEO
    208,  # io_getevents
    426,  # io_uring_enter
}
_IO_URING_ENTER = 426


def hide(state: Frozen, thread: FrozenThread) -> None:
    """Change the registers of a stopped thread where the program would see that it was stopped."""
    changed = _restart_interrupted_call(state.pid, thread)
    if thread.rseq.address:
        changed |= _abort_critical_section(state.memory, thread)
    if changed:
        tracee.set_registers(thread.tid, thread.registers)


def _restart_interrupted_call(pid: int, thread: FrozenThread) -> bool:
    registers = thread.registers
    if registers.orig_rax not in _INTERRUPTED_BY_A_STOP or registers.result != _EINTR or thread.signal_due:
        return False
    if registers.orig_rax == _IO_URING_ENTER and registers.rsi:
        return False  # it has submitted: a second call would submit again
    lines = procfs.status(f"{pid}/task/{thread.tid}")
    pending = int(lines["SigPnd"], 16) | int(lines["ShdPnd"], 16)
    if pending & ~int(lines["SigBlk"], 16):
        return False
    registers.rax, registers.rip, registers.orig_rax = registers.orig_rax, registers.rip - 2, -1
    return True


def _abort_critical_section(memory: Memory, thread: FrozenThread) -> bool:
    """Send a thread inside an rseq critical section to its abort handler, as the kernel would (rseq(2))."""
    try:
        section = memory.read_u64(thread.rseq.address + 8)
        if not section:
            return False
        _version, _flags, start, length, abort = _RSEQ_CS.unpack(memory.read(section, _RSEQ_CS.size))
    except NativeError:
        return False  # a stale pointer: the kernel would kill a thread that relied on it
    if not start <= thread.registers.rip < start + length:
        return False
    thread.registers.rip, thread.registers.orig_rax = abort, -1
    return True
