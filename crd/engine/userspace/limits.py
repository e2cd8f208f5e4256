"""Resource limits (getrlimit(2))."""

from __future__ import annotations

import os
import resource
import struct
from typing import TYPE_CHECKING

from crd.errors import RestartUnsupported
from crd.image.profile import ResourceLimit
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.native.batch import Batch

_PRLIMIT64 = 302
_CAP_SYS_RESOURCE = 24


def dump(pid: int) -> list[ResourceLimit]:
    """Read them from /proc: prlimit64 of another user's process wants CAP_SYS_RESOURCE."""
    return [ResourceLimit(resource=number, soft=soft, hard=hard)
            for number, (soft, hard) in enumerate(procfs.limits(pid))]


def raise_our_own() -> int:
    """Let us have as many open files as we may, and return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def check(limits: Sequence[ResourceLimit]) -> None:
    """Make sure that we may set these limits.

    Raises:
        RestartUnsupported: a hard limit is above ours, and we have no CAP_SYS_RESOURCE.
    """
    if int(procfs.status("self")["CapEff"], 16) >> _CAP_SYS_RESOURCE & 1:
        return
    ours = procfs.limits(os.getpid())
    for limit in limits:
        if limit.hard > ours[limit.resource][1]:
            raise RestartUnsupported(f"{procfs.LIMIT_NAMES[limit.resource]} of the image is {limit.hard}, "
                                     f"more than the {ours[limit.resource][1]} of crd itself",
                                     hint="Give crd CAP_SYS_RESOURCE or higher limits.")


def restart(limits: Sequence[ResourceLimit], batch: Batch) -> None:
    """Set all; executed by the task when all else that they limit is made."""
    for limit in limits:
        value = batch.data(struct.pack("<QQ", limit.soft, limit.hard))
        batch.call(_PRLIMIT64, 0, limit.resource, value, 0, what=f"limit {limit.resource}")
