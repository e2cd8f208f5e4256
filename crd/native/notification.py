"""System calls of other processes that a filter of seccomp(2) tells us of; source: seccomp_unotify(2).

Once it has been received, a call waits for its answer and for nothing but that and SIGKILL (``crd.syscalls``).
"""

from __future__ import annotations

import errno
import fcntl
import struct
from dataclasses import dataclass

from crd.errors import NativeError

_NOTIFICATION = struct.Struct("<QIIiIQ6Q")
_ANSWER = struct.Struct("<QqiI")
_COOKIE = struct.Struct("<Q")
_RECEIVE, _SEND, _IS_VALID = 0xC0502100, 0xC0182101, 0x40082102
"""SECCOMP_IOCTL_NOTIF_RECV, _SEND and _ID_VALID (include/uapi/linux/seccomp.h)."""


@dataclass(frozen=True, slots=True)
class Notification:
    """A call that waits.

    Attributes:
        cookie: names it to the kernel.
        tid: of the thread, as seen from here; 0: it cannot be seen from here.
        number: of the call.
        architecture: AUDIT_ARCH_* of it.
        arguments: six words.
    """

    cookie: int
    tid: int
    number: int
    architecture: int
    arguments: tuple[int, ...]

    def number_at(self, index: int) -> int:
        """Return an argument that is an ``int``: the lower half of its word, signed."""
        word = self.arguments[index] & 0xFFFFFFFF
        return word - (1 << 32) if word >> 31 else word


def receive(listener: int) -> Notification | None:
    """Take the next call of a listener that poll(2) says is readable; None if it does not wait any more.

    Raises:
        NativeError: the listener does not work.
    """
    data = bytearray(_NOTIFICATION.size)
    if not _request(listener, _RECEIVE, data):
        return None
    cookie, tid, _flags, number, architecture, _address, *arguments = _NOTIFICATION.unpack(data)
    return Notification(cookie, tid, number, architecture, tuple(arguments))


def waits(listener: int, cookie: int) -> bool:
    """Whether a call still waits; what was looked up before by its tid was then that thread's.

    Raises:
        NativeError: the listener does not work.
    """
    return _request(listener, _IS_VALID, bytearray(_COOKIE.pack(cookie)))


def answer(listener: int, cookie: int, result: int) -> bool:
    """Let a call return, with a negative errno for an error; false if it does not wait any more.

    Raises:
        NativeError: the listener does not work.
    """
    return _request(listener, _SEND, bytearray(_ANSWER.pack(cookie, max(result, 0), min(result, 0), 0)))


def _request(listener: int, request: int, data: bytearray) -> bool:
    try:
        fcntl.ioctl(listener, request, data)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.EINPROGRESS}:  # gone, or answered already
            return False
        raise NativeError(f"a listener of seccomp(2): {error.strerror}", operation="ioctl", errno=error.errno or 0,
                          tid=0, address=0) from error
    return True
