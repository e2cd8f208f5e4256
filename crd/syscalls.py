"""The calls ``checkpoint`` and ``restart`` as programs make them on mainline kernels: numbers and filter.

A program that ``crctl run`` started has a filter of seccomp(2) which tells the daemon of these two calls
(seccomp_unotify(2)) and lets all others through.  The kernel finds out at once which calls such a filter always lets
through, and does not run it for them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

NR_CHECKPOINT = 387
NR_RESTART = 388
"""arch/x86/entry/syscalls/syscall_64.tbl: 387 to 423 will never be used."""

X86_64 = 0xC000003E
"""AUDIT_ARCH_X86_64 of include/uapi/linux/audit.h."""

_NR_SECCOMP, _NR_PRCTL = 317, 157
_PR_SET_NO_NEW_PRIVS = 38
SET_MODE_FILTER = 1
NEW_LISTENER, WAIT_KILLABLE_RECV = 1 << 3, 1 << 5
"""SECCOMP_FILTER_FLAG_* (include/uapi/linux/seccomp.h); the second one from Linux 5.19 on."""
_RET_ALLOW, _RET_USER_NOTIF = 0x7FFF0000, 0x7FC00000
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_GREATER, _RETURN = 0x20, 0x15, 0x35, 0x25, 0x06
_NR_OFFSET, _ARCH_OFFSET = 0, 4

PROGRAM = b"".join(struct.pack("<HBBI", *instruction) for instruction in (
    (_LOAD, 0, 0, _NR_OFFSET),
    (_JUMP_GREATER_EQUAL, 0, 4, NR_CHECKPOINT),
    (_JUMP_GREATER, 3, 0, NR_RESTART),
    (_LOAD, 0, 0, _ARCH_OFFSET),
    (_JUMP_EQUAL, 0, 1, X86_64),
    (_RETURN, 0, 0, _RET_USER_NOTIF),
    (_RETURN, 0, 0, _RET_ALLOW),
))
"""The filter: struct sock_filter[] of include/uapi/linux/filter.h.  It harms no call, whoever has installed it."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def syscall(number: int, *arguments: int) -> int:
    """Make a system call; without the compiled module, which programs that save themselves may not have.

    Raises:
        OSError: it returned an error.
    """
    result = int(_libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def install() -> int:
    """Put the calling thread, and all that it will make, under the filter; return the listener's descriptor.

    Raises:
        OSError: EBUSY: there is such a filter with another listener already; EINVAL: Linux is older than 5.19.
    """
    code = ctypes.create_string_buffer(PROGRAM, len(PROGRAM))
    program = ctypes.create_string_buffer(struct.pack("<H6xQ", len(PROGRAM) // 8, ctypes.addressof(code)))
    words = _NR_SECCOMP, SET_MODE_FILTER, NEW_LISTENER | WAIT_KILLABLE_RECV, ctypes.addressof(program)
    try:
        return syscall(*words)
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
    syscall(_NR_PRCTL, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # without privileges this must be, and stays
    return syscall(*words)
