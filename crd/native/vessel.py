"""The process that a restarted task begins as."""

from __future__ import annotations

import errno
import os
from typing import Any, NoReturn

from crd.errors import FeatureMissing, NativeError, PidInUse
from crd.native.check import call
from crd.native.ffi import ffi, lib

_ROOT = slice(12, 16)
"""Where the reaper's ELF file, in the unused bytes of its identification, has the number of the root."""


def spawn_vessel(pid: int = 0) -> int:
    """Start a vessel: a process that holds its own page of code, a stack and the vdso, and only waits.

    All its signals are blocked; its descriptors are ours, without those that close on exec.  Its parent-death signal is
    SIGKILL, so that it does not outlive us before it is traced.

    Args:
        pid: the number it must have, 0 = any.

    Returns:
        Its pid; it is our child.

    Raises:
        PidInUse: something has that number, be it only as process group or session.
        FeatureMissing: we may not choose pids (CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN).
        NativeError: anything else.
    """
    fd = _memfd("crd-vessel", _code(lib.crd_vessel_code()))
    try:
        found = ffi.new("int *")
        call(lib.crd_vessel_spawn, fd, pid, found)
    except NativeError as error:
        if error.errno == errno.EEXIST:
            raise PidInUse(f"pid {pid} is in use", pid=pid) from error
        if error.errno == errno.EPERM and pid:
            raise FeatureMissing("these privileges do not allow choosing a pid",
                                 hint="Run as root, or use --new-pids or --pidns.") from error
        raise
    finally:
        os.close(fd)
    return int(found[0])


def become_reaper(root: int = 0) -> NoReturn:
    """Turn this process into one that only reaps, and that exits once all its children have ended.

    Args:
        root: whose exit status becomes its own, 128 + N for signal N; 0: that of whoever is last.
    """
    code = bytearray(_code(lib.crd_reaper_code()))
    code[_ROOT] = root.to_bytes(4, "little")
    os.execve(_memfd("crd-reaper", code), ["crd-reaper"], {})


def _code(blob: Any) -> bytes:
    return bytes(ffi.buffer(blob.start, blob.length))


def _memfd(name: str, code: bytes | bytearray) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.write(fd, code)
    return fd
