"""ptrace(2), one thin call each.  A session belongs to the thread that seized: no other may make these calls."""

from __future__ import annotations

import errno
import signal
import struct
import time
from dataclasses import dataclass, fields
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, Self

from crd.errors import NativeError
from crd.native.check import call
from crd.native.ffi import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

OPTION_TRACESYSGOOD = 1
OPTION_TRACEFORK = 1 << 1
OPTION_TRACEVFORK = 1 << 2
OPTION_TRACECLONE = 1 << 3
OPTION_TRACEEXIT = 1 << 6
OPTION_EXITKILL = 1 << 20
OPTION_SUSPEND_SECCOMP = 1 << 21
EVENT_VFORK = 2
EVENT_CLONE = 3
EVENT_EXIT = 6
EVENT_STOP = 128

_SEIZE, _INTERRUPT, _CONT, _SYSCALL, _DETACH, _SETOPTIONS, _LISTEN = 0x4206, 0x4207, 7, 24, 17, 0x4200, 0x4208
_GETEVENTMSG, _GETSIGINFO, _GETSIGMASK, _SETSIGMASK, _GET_RSEQ = 0x4201, 0x4202, 0x420A, 0x420B, 0x420F
_SET_THREAD_AREA, _SET_DISPATCH = 26, 0x4210
_NT_PRSTATUS, _NT_X86_XSTATE = 1, 0x202
_XSTATE_BYTES_MAX = 64 << 10
_SIGINFO_BYTES = 128
_LAYOUT = struct.Struct("<27Q")
_WORD = (1 << 64) - 1
_FILTER_INSTRUCTIONS_MAX = 4096


@dataclass(slots=True)
class Registers:
    """struct user_regs_struct: unsigned 64-bit numbers in the kernel's order."""

    r15: int
    r14: int
    r13: int
    r12: int
    rbp: int
    rbx: int
    r11: int
    r10: int
    r9: int
    r8: int
    rax: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    orig_rax: int
    rip: int
    cs: int
    eflags: int
    rsp: int
    ss: int
    fs_base: int
    gs_base: int
    ds: int
    es: int
    fs: int
    gs: int

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the 216 bytes of the kernel's structure."""
        return cls(*_LAYOUT.unpack(data))

    def to_bytes(self) -> bytes:
        """Return the 216 bytes of the kernel's structure; negative numbers wrap."""
        return _LAYOUT.pack(*[getattr(self, name) & _WORD for name in _NAMES])

    def copy(self) -> Self:
        """Return a copy to change."""
        return type(self)(*[getattr(self, name) for name in _NAMES])

    @property
    def result(self) -> int:
        """The signed value of rax: what a system call returned."""
        return signed(self.rax)

    @property
    def in_syscall(self) -> bool:
        """Whether the thread was stopped inside a system call."""
        return signed(self.orig_rax) >= 0


_NAMES = tuple(field.name for field in fields(Registers))


def signed(word: int) -> int:
    """Return a 64-bit word as the signed number it stands for."""
    return word - (1 << 64) if word >> 63 else word


class Stop(NamedTuple):
    """What waitpid(2) said of a tracee."""

    tid: int
    status: int

    @property
    def ended(self) -> bool:
        """It exited or was killed; there is no tracee any more."""
        return not self.stopped

    @property
    def stopped(self) -> bool:
        """It is stopped and can be asked."""
        return self.status & 0xFF == 0x7F

    @property
    def signal(self) -> int:
        """The signal in the status word."""
        return self.status >> 8 & 0xFF

    @property
    def event(self) -> int:
        """PTRACE_EVENT_*, 0 for none."""
        return self.status >> 16

    @property
    def is_syscall(self) -> bool:
        """A stop at the entry or exit of a system call."""
        return self.status >> 8 == signal.SIGTRAP | 0x80

    @property
    def is_event_stop(self) -> bool:
        """PTRACE_EVENT_STOP: by INTERRUPT, by a group stop, or a new thread."""
        return self.event == EVENT_STOP

    @property
    def is_group_stop(self) -> bool:
        """A job-control stop."""
        return self.is_event_stop and self.signal != signal.SIGTRAP

    @property
    def is_signal(self) -> bool:
        """A signal is about to be delivered; whoever lets the tracee go on decides about it."""
        return self.stopped and self.event == 0 and not self.is_syscall


@dataclass(frozen=True, slots=True)
class RseqConfiguration:
    """What a thread registered with rseq(2); address 0 = nothing."""

    address: int
    bytes: int
    signature: int
    flags: int


def seize(tid: int, options: int = 0) -> None:
    """PTRACE_SEIZE: begin to trace a thread without stopping it."""
    _request(_SEIZE, tid, 0, options, b"ptrace SEIZE")


def interrupt(tid: int) -> None:
    """PTRACE_INTERRUPT: ask for a stop; ``wait`` says when it is there."""
    _request(_INTERRUPT, tid, 0, 0, b"ptrace INTERRUPT")


def set_options(tid: int, options: int) -> None:
    """PTRACE_SETOPTIONS of a stopped tracee."""
    _request(_SETOPTIONS, tid, 0, options, b"ptrace SETOPTIONS")


def cont(tid: int, signal_number: int = 0) -> None:
    """PTRACE_CONT: let a stopped tracee run, with a signal delivered."""
    _request(_CONT, tid, 0, signal_number, b"ptrace CONT")


def listen(tid: int) -> None:
    """PTRACE_LISTEN: leave a tracee in its group stop, which ends as if it were not traced."""
    _request(_LISTEN, tid, 0, 0, b"ptrace LISTEN")


def to_syscall(tid: int, signal_number: int = 0) -> None:
    """PTRACE_SYSCALL: let a stopped tracee run to the next entry or exit of a system call."""
    _request(_SYSCALL, tid, 0, signal_number, b"ptrace SYSCALL")


def detach(tid: int, signal_number: int = 0) -> None:
    """PTRACE_DETACH.  From an EVENT_STOP the kernel drops the signal without a word."""
    _request(_DETACH, tid, 0, signal_number, b"ptrace DETACH")


def _request(request: int, tid: int, address: int, data: int, operation: bytes) -> None:
    call(lib.crd_ptrace, request, tid, address, data, operation)


def wait(tid: int = -1) -> Stop:
    """Wait for a stop or the end of a tracee (-1: of any).

    A stop before the delivery of a signal is reported again until the tracee is let go: it stays unconsumed, since the
    kernel then delivers the signal if the tracer dies.

    Raises:
        NativeError: ECHILD: it is no tracee of this thread.
    """
    return _wait(tid, -1)


def wait_until(deadline: float, tid: int = -1) -> Stop | None:
    """``wait`` until time.monotonic() is ``deadline``, and return None if there was no stop in time."""
    stop = _wait(tid, max(0, int((deadline - time.monotonic()) * 1e9)))
    return stop if stop.tid else None


def wait_end(tid: int) -> None:
    """Wait until a tracee that was killed has ended; Raises: as ``wait``."""
    while not wait(tid).ended:
        pass


def _wait(tid: int, timeout_ns: int) -> Stop:
    found, status = ffi.new("int *"), ffi.new("int *")
    call(lib.crd_wait, tid, timeout_ns, found, status)
    return Stop(found[0], status[0])


def syscall_stops(tid: int, n: int) -> Stop:
    """Let a stopped tracee run through n stops at the entry or exit of system calls, and return the last.

    A SIGSTOP on the way is passed on.  It is another stop if the tracee ended or another signal is due.
    """
    status = ffi.new("int *")
    call(lib.crd_syscall_stops, tid, n, status)
    return Stop(tid, status[0])


def get_registers(tid: int) -> Registers:
    """Return the general registers of a stopped tracee."""
    return Registers.from_bytes(_regset(tid, _NT_PRSTATUS, _LAYOUT.size))


def set_registers(tid: int, registers: Registers) -> None:
    """Set the general registers of a stopped tracee, all at once."""
    data = registers.to_bytes()
    call(lib.crd_regset_set, tid, _NT_PRSTATUS, ffi.from_buffer(data), len(data))


def get_xstate(tid: int) -> bytes:
    """Return the extended state (NT_X86_XSTATE), as large as the CPU's features make it."""
    return _regset(tid, _NT_X86_XSTATE, _XSTATE_BYTES_MAX)


def set_xstate(tid: int, data: bytes) -> None:
    """Set the extended state; its size must be this CPU's."""
    call(lib.crd_regset_set, tid, _NT_X86_XSTATE, ffi.from_buffer(data), len(data))


def _regset(tid: int, kind: int, size: int) -> bytes:
    buffer, length = ffi.new("unsigned char[]", size), ffi.new("size_t *")
    call(lib.crd_regset_get, tid, kind, buffer, size, length)
    return bytes(ffi.buffer(buffer, length[0]))


def get_signal_mask(tid: int) -> int:
    """Return the blocked signals, bit n-1 for signal n; inside sigsuspend(2) and friends the mask to come back to."""
    mask = ffi.new("uint64_t *")
    call(lib.crd_ptrace_buffer, _GETSIGMASK, tid, 8, mask, b"ptrace GETSIGMASK")
    return int(mask[0])


def set_signal_mask(tid: int, mask: int) -> None:
    """Set the blocked signals."""
    call(lib.crd_ptrace_buffer, _SETSIGMASK, tid, 8, ffi.new("uint64_t *", mask), b"ptrace SETSIGMASK")


def set_dispatch(tid: int, mode: int, selector: int, offset: int, length: int) -> None:
    """Have system calls go to a handler, as prctl(PR_SET_SYSCALL_USER_DISPATCH) does (6.4)."""
    config = ffi.new("uint64_t[]", [mode, selector, offset, length])
    call(lib.crd_ptrace_buffer, _SET_DISPATCH, tid, 32, config, b"ptrace SET_SYSCALL_USER_DISPATCH_CONFIG")


def set_thread_area(tid: int, number: int, descriptor: bytes) -> None:
    """Set an entry of the GDT, 12 to 14, from the 16 bytes of a struct user_desc (set_thread_area(2))."""
    call(lib.crd_ptrace_buffer, _SET_THREAD_AREA, tid, number, ffi.from_buffer(descriptor), b"ptrace SET_THREAD_AREA")


def event_message(tid: int) -> int:
    """Return what PTRACE_GETEVENTMSG says of an event stop.

    Of a clone or vfork that is the pid of the new task, of an exit the status that its parent will see.
    """
    message = ffi.new("uint64_t *")
    call(lib.crd_ptrace_buffer, _GETEVENTMSG, tid, 0, message, b"ptrace GETEVENTMSG")
    return int(message[0])


def get_siginfo(tid: int) -> bytes:
    """Return the 128 bytes of siginfo of a signal-delivery-stop."""
    buffer = ffi.new("unsigned char[]", _SIGINFO_BYTES)
    call(lib.crd_ptrace_buffer, _GETSIGINFO, tid, 0, buffer, b"ptrace GETSIGINFO")
    return bytes(ffi.buffer(buffer))


def peek_siginfo(tid: int, *, shared: bool) -> list[bytes]:
    """Return the queued signals of the thread or, shared, of its process: 128 bytes each, in order."""
    found: list[bytes] = []
    batch = 64
    buffer, n = ffi.new("unsigned char[]", _SIGINFO_BYTES * batch), ffi.new("int *")
    while True:
        call(lib.crd_siginfo_peek, tid, shared, len(found), batch, buffer, n)
        data = bytes(ffi.buffer(buffer, n[0] * _SIGINFO_BYTES))
        found += [data[at:at + _SIGINFO_BYTES] for at in range(0, len(data), _SIGINFO_BYTES)]
        if n[0] < batch:
            return found


def rseq_configuration(tid: int) -> RseqConfiguration:
    """Return what the thread registered with rseq(2) (PTRACE_GET_RSEQ_CONFIGURATION, 5.13)."""
    buffer = ffi.new("unsigned char[24]")
    try:
        _rseq_request(tid, buffer)
    except NativeError as error:
        if error.errno != errno.EINVAL:
            raise
        return RseqConfiguration(0, 0, 0, 0)
    return RseqConfiguration(*struct.unpack_from("<QIII", bytes(ffi.buffer(buffer))))


def _rseq_request(tid: int, buffer: object) -> None:
    """The request returns the size of the structure, which is no error."""
    call(lib.crd_ptrace_buffer, _GET_RSEQ, tid, 24, buffer, b"ptrace GET_RSEQ_CONFIGURATION")


def robust_list(tid: int) -> tuple[int, int]:
    """Return head and length of the thread's robust futex list (get_robust_list(2))."""
    head, length = ffi.new("uint64_t *"), ffi.new("uint64_t *")
    call(lib.crd_robust_list_get, tid, head, length)
    return int(head[0]), int(length[0])


def seccomp_filters(tid: int) -> Iterator[tuple[int, bytes]]:
    """Yield the filters of seccomp(2) of a stopped tracee, flags and program, those installed first at the front.

    Raises:
        NativeError: EACCES: we have no CAP_SYS_ADMIN, or are confined ourselves.
    """
    instructions, n, flags = ffi.new("uint64_t[]", _FILTER_INSTRUCTIONS_MAX), ffi.new("int *"), ffi.new("uint64_t *")
    for index in count():
        call(lib.crd_seccomp_filter_get, tid, index, instructions, n, flags)
        if not n[0]:
            return
        yield int(flags[0]), bytes(ffi.buffer(instructions, n[0] * 8))
