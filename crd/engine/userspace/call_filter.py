"""The filter of ``crd.syscalls``: made again for a restarted process, with a listener of its own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crd import syscalls
from crd.engine.userspace import bpf
from crd.native.syscall import NR, pidfd_getfd, syscall

if TYPE_CHECKING:
    from crd.engine.userspace.vessel import Vessel


def restart(vessel: Vessel) -> int:
    """Put a vessel, and all threads that it will make, under the filter; return the listener, ours to close."""
    batch = vessel.batch
    code = batch.data(syscalls.PROGRAM)
    program = batch.data(bpf.fprog(syscalls.PROGRAM, code))
    batch.call(NR.SECCOMP, syscalls.SET_MODE_FILTER, syscalls.NEW_LISTENER | syscalls.WAIT_KILLABLE_RECV, program,
               what="installing the filter of crctl run")
    [listener] = vessel.run()
    pidfd = syscall(NR.PIDFD_OPEN, vessel.pid, 0)
    try:
        ours = pidfd_getfd(pidfd, listener)
    finally:
        os.close(pidfd)
    batch.call(NR.CLOSE, listener)
    vessel.run()
    return ours
