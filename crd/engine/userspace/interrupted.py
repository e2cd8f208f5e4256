"""System calls in progress: how a restarted thread takes them up again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.errors import NativeError
from crd.native.inject import home_registers
from crd.native.syscall import NR

if TYPE_CHECKING:
    from crd.native.memory import Memory
    from crd.native.tracee import Registers

_POLL, _NANOSLEEP, _FUTEX, _CLOCK_NANOSLEEP = 7, 35, 202, 230
_RESTART_BLOCK = -516  # ERESTART_RESTARTBLOCK (include/linux/errno.h)
_TIMER_ABSTIME = 1
_CLOCKS = 16
_FUTEX_WAITS = {0x80, 0x89, 0x109, 0x189, 0x8B, 0x18B}  # FUTEX_WAIT, WAIT_BITSET, WAIT_REQUEUE_PI, with flags
_CODE_BYTES = 24
_MOV_EAX, _SYSCALL = 0xB8, b"\x0f\x05"


def begin_again(registers: Registers, memory: Memory) -> Registers:
    """Return the registers with which the restarted thread begins.

    A call is made again as the kernel would do it.  What the kernel alone knows of an interrupted sleep (its restart
    block) does not survive: that call is made again as a whole, but a sleep goes on with what was left where the
    kernel has told the program (its last argument; see nanosleep(2)).

    Args:
        registers: as they were when the thread was stopped.
        memory: of its process.
    """
    again = home_registers(registers)
    if not (registers.in_syscall and registers.result == _RESTART_BLOCK):
        return again
    again.rax = registers.orig_rax
    if again.rax == NR.RESTART_SYSCALL:
        again.rax = _named_in_code(registers, memory) or _guessed(registers)
    if again.rax == _NANOSLEEP and registers.rsi:
        again.rdi = registers.rsi
    elif again.rax == _CLOCK_NANOSLEEP and registers.r10 and not registers.rsi & _TIMER_ABSTIME:
        again.rdx = registers.r10
    return again


def returned(registers: Registers, result: int) -> Registers:
    """Return the registers of a thread whose system call has just returned this."""
    after = registers.copy()
    after.rax, after.orig_rax = result, -1
    return after


def _named_in_code(registers: Registers, memory: Memory) -> int:
    """Find the number in the instructions before the call: ``mov $number, %eax`` as compilers and libraries write it.

    A call that was stopped before shows as restart_syscall(2), and the number it began with is no longer kept anywhere.
    """
    try:
        code = memory.read(registers.rip - _CODE_BYTES, _CODE_BYTES)
    except NativeError:
        return 0
    if not code.endswith(_SYSCALL):
        return 0
    for at in range(len(code) - 7, -1, -1):
        number = int.from_bytes(code[at + 1:at + 5], "little")
        if code[at] == _MOV_EAX and number in {_POLL, _NANOSLEEP, _FUTEX, _CLOCK_NANOSLEEP}:
            return number
    return 0


def _guessed(registers: Registers) -> int:
    """Tell the four calls that have restart blocks apart by their arguments."""
    if 0 < registers.rdi < _CLOCKS or (registers.rdi == 0 and registers.rdx > 1 << 16):
        return _CLOCK_NANOSLEEP
    if registers.rsi in _FUTEX_WAITS:
        return _FUTEX
    return _NANOSLEEP if (registers.rsi == 0 and registers.rdi) or registers.rsi > 1 << 16 else _POLL
