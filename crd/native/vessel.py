"""The process that a restarted task begins as."""

from __future__ import annotations

import errno
import os
from typing import Any, NoReturn

from crd.errors import FeatureMissing, NativeError, PidInUse
from crd.native.check import call
from crd.native.ffi import ffi, lib


def spawn_vessel(pid: int = 0) -> int:
    """Start a vessel: a process that holds its own page of code, a stack and the vdso, and only waits.

    All its signals are blocked; its descriptors are ours, without those that close on exec.

    Args:
        pid: the number it must have, 0 = any.

    Returns:
        Its pid; it is our child.

    Raises:
        PidInUse: something has that number, be it only as process group or session.
        FeatureMissing: we may not choose pids (CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN).
        NativeError: anything else.
    """
    fd = _memfd("crd-vessel", lib.crd_vessel_code())
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


def become_reaper() -> NoReturn:
    """Turn this process into one that only reaps, and that exits as the last of its children did."""
    fd = _memfd("crd-reaper", lib.crd_reaper_code())
    os.execve(fd, ["crd-reaper"], {})


def _memfd(name: str, code: Any) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.write(fd, ffi.buffer(code.start, code.length))
    return fd
