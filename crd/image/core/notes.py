"""The notes of a core: structures of ``include/linux/elfcore.h`` and ``include/uapi/linux/elf.h`` for 64-bit x86."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crd.image.core.elf import note
from crd.image.profile import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from crd.image.profile import MemoryLayout, Process, Thread

_CORE, _LINUX = b"CORE", b"LINUX"
_NT_PRSTATUS, _NT_FPREGSET, _NT_PRPSINFO, _NT_AUXV = 1, 2, 3, 6
_NT_FILE, _NT_SIGINFO, _NT_X86_XSTATE = 0x46494C45, 0x53494749, 0x202

_PRSTATUS = struct.Struct("<iiihxxQQIIII64x216sixxxx")
_PRPSINFO = struct.Struct("<bcbbxxxxQIIIIII16s80s")
_SIGINFO = struct.Struct("<iii116x")
_MAPPED = struct.Struct("<QQQ")
_FILES = struct.Struct("<QQ")
ARGUMENTS_BYTES = 79
"""What pr_psargs holds of the command line, behind which is a NUL."""
FILES_BYTES_MAX = 16 << 20
"""Of NT_FILE; the kernel's own limit is 4 MiB (core_file_note_size_limit)."""
_PATH_MAX = 4096

_LEGACY_STATE_BYTES = 512
"""What FXSAVE writes, with which the state of XSAVE begins."""
_SIGNALS_OF_FAULTS = {4, 5, 7, 8, 11, 31}  # SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV, SIGSYS


@dataclass(slots=True)
class ThreadState:
    """A thread, and the signals that wait for it alone, in the order of their queue."""

    thread: Thread
    pending: list[bytes] = field(default_factory=list)

    def fault(self) -> bytes:
        """Return the siginfo of a fault that the kernel has not told it of yet, or nothing.

        Like ``dequeue_synchronous_signal`` of ``kernel/signal.c``: what the kernel itself has sent, with SI_KERNEL or
        a code that says why.
        """
        return next((info for info in self.pending
                     if _number(info) in _SIGNALS_OF_FAULTS and int.from_bytes(info[8:12], "little", signed=True) > 0),
                    b"")


def thread_notes(state: ThreadState, process: Process, between: Iterable[bytes] = ()) -> Iterator[bytes]:
    """Yield the notes of a thread.

    Args:
        state: of it.
        process: that it belongs to.
        between: notes of the process, which follow the first of its leader.
    """
    xstate = state.thread.xstate
    yield note(_CORE, _NT_PRSTATUS, _prstatus(state, process))
    yield from between
    yield note(_CORE, _NT_FPREGSET, xstate[:_LEGACY_STATE_BYTES])
    yield note(_LINUX, _NT_X86_XSTATE, xstate)


def _prstatus(state: ThreadState, process: Process) -> bytes:
    signal = _number(state.fault()) or process.stopped_by
    pending = 0
    for info in state.pending:
        pending |= 1 << _number(info) - 1
    return _PRSTATUS.pack(signal, 0, 0, signal, pending, state.thread.signal_mask, state.thread.tid,
                          process.parent_pid, process.process_group, process.session, state.thread.registers, 1)


def program_note(process: Process, leader: Thread, comm: str, task_state: int) -> bytes:
    """Return NT_PRPSINFO without the command line, for which there are ``ARGUMENTS_BYTES`` before its last byte.

    Args:
        process: with its ids.
        leader: whose user, group and nice value it tells.
        comm: its name.
        task_state: TASK_* of the kernel, 0: running.
    """
    number = (task_state & -task_state).bit_length()
    letter = b"RSDT"[number:number + 1] or b"."
    return note(_CORE, _NT_PRPSINFO, _PRPSINFO.pack(
        number, letter, 0, max(-20, min(leader.nice, 19)), 0, leader.uids[0], leader.gids[0], process.pid,
        process.parent_pid, process.process_group, process.session, comm.encode("utf-8", "surrogateescape"), b""))


def signal_note(leader: ThreadState, process: Process) -> Iterator[bytes]:
    """Yield NT_SIGINFO: the fault that the leader is at, else the signal that stopped the process, if one did."""
    if fault := leader.fault():
        yield note(_CORE, _NT_SIGINFO, fault)
    elif process.stopped_by:
        yield note(_CORE, _NT_SIGINFO, _SIGINFO.pack(process.stopped_by, 0, 0))


def vector_note(layout: MemoryLayout) -> bytes:
    """Return NT_AUXV."""
    return note(_CORE, _NT_AUXV, layout.auxv)


def files_note(mapped: Iterable[tuple[int, int, int, str]]) -> bytes:
    """Return NT_FILE: start, end, offset in bytes and path of each mapping of a file.

    What would make it larger than ``FILES_BYTES_MAX``, and paths that no kernel knows, are left out.
    """
    entries, paths = bytearray(), bytearray()
    for start, end, offset, path in mapped:
        name = path.encode("utf-8", "surrogateescape") + b"\0"
        if len(name) <= _PATH_MAX and len(entries) + len(paths) + _MAPPED.size + len(name) <= FILES_BYTES_MAX:
            entries += _MAPPED.pack(start, end, offset // PAGE_BYTES)
            paths += name
    return note(_CORE, _NT_FILE, _FILES.pack(len(entries) // _MAPPED.size, PAGE_BYTES) + entries + paths)


def _number(info: bytes) -> int:
    return int.from_bytes(info[:4], "little")
