"""Segments of x86 (modify_ldt(2), set_thread_area(2)): Wine and DOS emulators have some.

The kernel tells the table of a process (LDT) only to that itself, and always from its beginning.  Where a filter of
seccomp(2) forbids to ask for it, it is taken to be empty.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from crd.engine.userspace.questions import OUT, Question
from crd.errors import NativeError, RestartUnsupported
from crd.image.profile import LocalDescriptors, ThreadDescriptors
from crd.native import tracee
from crd.native.inject import Call, Scratch
from crd.native.syscall import NR

if TYPE_CHECKING:
    from crd.engine.userspace.questions import Answer
    from crd.engine.userspace.vessel import Vessel
    from crd.native.inject import Injector
    from crd.native.threads import ThreadGroup
    from crd.native.tracee import Registers

_READ, _WRITE = 0, 0x11
_ENTRY_BYTES, _TABLE_BYTES, _RESULT_BYTES = 8, 8192 * 8, 8
_USER = struct.Struct("<4I")
_FIRST_OF_THREAD = 12  # GDT_ENTRY_TLS_MIN
_NOTHING = 0x28  # of an empty entry: read_exec_only, seg_not_present

QUESTION = Question(NR.MODIFY_LDT, (_READ, OUT, _ENTRY_BYTES))
"""Whether a process has a table."""


def dump(answer: Answer, stubs: Injector, pid: int, registers: Registers) -> LocalDescriptors | None:
    """Read the table of a stopped process, if it has one.

    Args:
        answer: to QUESTION.
        stubs: for system calls in the process.
        pid: of it.
        registers: of its leader.

    Raises: as ``Injector.script``.
    """
    if answer.result <= 0:
        return None
    done = stubs.script(pid, registers, [Call(NR.MODIFY_LDT, (_READ, Scratch(_RESULT_BYTES), _TABLE_BYTES))],
                        scratch_bytes=_RESULT_BYTES + _TABLE_BYTES)
    table = done.scratch[_RESULT_BYTES:].rstrip(b"\0")
    return LocalDescriptors(pid=pid, table=table.ljust(-(-len(table) // _ENTRY_BYTES) * _ENTRY_BYTES, b"\0"))


def dump_thread(group: ThreadGroup, tid: int) -> ThreadDescriptors | None:
    """Return the entries of a thread, if any is set; it was stopped, and may run again."""
    entries = group.state(tid).descriptors
    used = any(number and (base or limit or flags != _NOTHING)
               for number, base, limit, flags in _USER.iter_unpack(entries))
    return ThreadDescriptors(tid=tid, entries=entries) if used else None


def restart(record: LocalDescriptors, vessel: Vessel) -> None:
    """Write the table again."""
    for number, (descriptor,) in enumerate(struct.iter_unpack("<Q", record.table)):
        if descriptor:
            entry = vessel.batch.data(user_descriptor(number, descriptor))
            vessel.batch.call(NR.MODIFY_LDT, _WRITE, entry, _USER.size, what=f"entry {number} of the LDT")
            vessel.flush()
    vessel.run()


def restart_thread(record: ThreadDescriptors, tid: int) -> None:
    """Set the entries of a thread again; raises RestartUnsupported."""
    try:
        for index in range(len(record.entries) // _USER.size):
            entry = record.entries[index * _USER.size:(index + 1) * _USER.size]
            tracee.set_thread_area(tid, _FIRST_OF_THREAD + index, entry)
    except NativeError as error:
        raise RestartUnsupported(f"the segments of thread {record.tid}: {error.message}") from error


def user_descriptor(number: int, descriptor: int) -> bytes:
    """Return the struct user_desc that makes such an entry (fill_ldt of arch/x86/include/asm/desc.h)."""
    base = descriptor >> 16 & 0xFFFFFF | descriptor >> 56 << 24
    limit = descriptor & 0xFFFF | (descriptor >> 48 & 0xF) << 16
    kind, present = descriptor >> 40 & 0xF, descriptor >> 47 & 1
    useable, is_32bit, in_pages = descriptor >> 52 & 1, descriptor >> 54 & 1, descriptor >> 55 & 1
    flags = (is_32bit | (kind >> 2 & 3) << 1 | (~kind >> 1 & 1) << 3 | in_pages << 4 | (1 - present) << 5
             | useable << 6)
    return _USER.pack(number, base, limit, flags)
