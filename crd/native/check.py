"""Where an error of the C side becomes an exception."""

from __future__ import annotations

import errno
import os
from typing import Any

from crd.errors import MemoryFault, NativeError, TraceDenied, TraceeGone
from crd.native.ffi import ffi

_KINDS: dict[int, type[NativeError]] = {
    errno.ESRCH: TraceeGone,
    errno.EFAULT: MemoryFault,
    errno.EIO: MemoryFault,
}


def call(function: Any, *arguments: Any) -> None:
    """Call a C function that takes a ``struct crd_error *`` last.

    Raises:
        TraceDenied: the kernel refused a trace (EPERM, EACCES of ptrace).
        TraceeGone: ESRCH: there is no such task, or it is not stopped.
        MemoryFault: EFAULT or EIO: this memory cannot be read or written.
        NativeError: any other error.
    """
    error = ffi.new("struct crd_error *")
    failed = function(*arguments, error)
    del arguments  # the collector crashes on cffi's buffers of memoryviews, which a traceback would leave to it
    if failed:
        raise _exception(error)


def _exception(error: Any) -> NativeError:
    operation = ffi.string(error.operation).decode()
    number = error.error_number
    kind = _KINDS.get(number, NativeError)
    if number in {errno.EPERM, errno.EACCES} and operation.startswith("ptrace"):
        kind = TraceDenied
    where = (f" of task {error.tid}" if error.tid > 0 else "") + (f" at {error.address:#x}" if error.address else "")
    return kind(f"{operation}{where}: {os.strerror(number)}", operation=operation, errno=number, tid=error.tid,
                address=error.address)
