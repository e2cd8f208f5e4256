"""What is the same for semaphore sets and message queues: is it still there, may it be made, and under its number."""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from crd.errors import NativeError, ResourceChanged, RestartError, RestartUnsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from crd.engine.userspace.broker import Broker
    from crd.engine.userspace.plan import Plan
    from crd.image.sysv import SysvQueue, SysvSemaphores
    from crd.target.sysv_ipc import Queue, Semaphores

CREATE, EXCLUSIVE = 0o1000, 0o2000
REMOVE, SET, STATUS = 0, 1, 2
"""IPC_*."""
PERMISSION = struct.Struct("<iIIIII24x")
"""struct ipc64_perm: key, uid, gid, those of who made it, mode."""


def check(records: Iterable[SysvSemaphores | SysvQueue], there: Iterable[Semaphores | Queue], plan: Plan,
          what: str) -> None:
    """Make sure that objects are there, or can be made.

    Args:
        records: those of an image.
        there: those there are.
        plan: of the first process.
        what: to call them.

    Raises:
        ResourceChanged: another one has the number or the key.
        RestartUnsupported: the task could not have made it.
    """
    by_number = {one.id: one for one in there}
    for record in records:
        if found := by_number.get(record.number):
            if found.key != record.key:
                raise ResourceChanged(f"{what} {record.number} is another one than the image knew", path="",
                                      hint="Remove it, if nobody needs it (ipcrm).")
            continue
        if other := next((one for one in by_number.values() if record.key and one.key == record.key), None):
            raise ResourceChanged(f"the key {record.key:#x} leads to {what} {other.id} now, not {record.number}",
                                  path="", hint="Remove that one, if nobody needs it (ipcrm).")
        if plan.leader.uids[1] not in {0, record.uid}:
            raise RestartUnsupported(f"{what} {record.number} is not of the user of the task "
                                     f"(uid {plan.leader.uids[1]})")


def make(record: SysvSemaphores | SysvQueue, next_number: str, get: Callable[[], int], remove: Callable[[int], object],
         broker: Broker) -> None:
    """Make an object under its number; it is gone again unless the tasks come to life.

    Args:
        record: the object.
        next_number: the setting of the kernel that says which number the next one gets (sysctl kernel.*_next_id).
        get: makes it, and returns its number.
        remove: removes the one with a number.
        broker: to undo it.

    Raises:
        RestartError: it cannot be made.
    """
    try:
        with open(f"/proc/sys/kernel/{next_number}", "w", encoding="ascii") as file:
            file.write(str(record.number))
        number = get()
    except (NativeError, OSError) as error:
        raise RestartError(f"System V IPC {record.number}: {os.strerror(error.errno or 0)}",
                           errno=error.errno) from error

    def undo() -> None:
        with suppress(NativeError):
            remove(number)

    broker.undo(undo)
    if number != record.number:
        raise RestartError(f"System V IPC {record.number} gets the number {number}: try again")
