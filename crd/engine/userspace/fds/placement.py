"""The file table, made again: every description opened once by us, pulled by the vessel and put under its numbers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crd.engine.userspace.fds import lock, pipe, regular
from crd.engine.userspace.fds.description import Owner, restart_owner
from crd.errors import RestartError, RestartUnsupported
from crd.native.syscall import NR

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from crd.engine.userspace.broker import Broker
    from crd.engine.userspace.plan import Plan
    from crd.engine.userspace.vessel import Vessel

_ALL_FDS = 0xFFFF_FFFF
_F_OWNER_PGRP = 2


def restart(plan: Plan, vessel: Vessel, broker: Broker, *, must_be_same: bool) -> dict[int, int]:
    """Give the vessel its descriptors and locks.

    Returns:
        Our descriptor of each description, by objref.

    Raises:
        ResourceChanged: a file is missing or not what it was, or somebody else has locked it.
        RestartUnsupported: a number is above our limit of open files.
    """
    ours = _open(plan, broker, must_be_same=must_be_same)
    lock.restart_flocks(plan, ours)
    above = max((record.fd for record in plan.descriptors), default=-1) + 1
    if above + len(ours) >= broker.fds_max:
        raise RestartUnsupported(f"descriptor {above - 1} is above the limit of open files, {broker.fds_max}")
    places = {objref: above + index for index, objref in enumerate(ours)}
    for objref, fd in ours.items():
        vessel.batch.call(NR.DUP2, broker.pull(vessel.batch, fd), places[objref])
        vessel.flush()
    if above:
        vessel.batch.call(NR.CLOSE_RANGE, 0, above - 1, 0)
    for record in plan.descriptors:
        vessel.batch.call(NR.DUP3, places[record.objref], record.fd, os.O_CLOEXEC if record.close_on_exec else 0,
                          what=f"descriptor {record.fd}")
        vessel.flush()
    vessel.batch.call(NR.CLOSE_RANGE, above, _ALL_FDS, 0)
    vessel.run()
    lock.restart_posix(plan, vessel.batch)
    try:
        vessel.run()
    except RestartError:
        lock.check(plan)  # says who has it
        raise
    return ours


def _open(plan: Plan, broker: Broker, *, must_be_same: bool) -> dict[int, int]:
    """Open every description that a descriptor refers to; return our numbers by objref."""
    wanted = {record.objref for record in plan.descriptors}
    ours: dict[int, int] = {}
    for objref, record in plan.files.items():
        if objref in wanted:
            ours[objref] = regular.restart(record, broker, must_be_same=must_be_same)
    for number, made in plan.pipes.items():
        ends = [end for end in plan.pipe_ends.values() if end.pipe == number and end.objref in wanted]
        data = [chunk for chunk in plan.pipe_data if chunk.objref == number]
        for objref, fd in pipe.restart(made, ends, data).items():
            ours[objref] = broker.hold(fd)
    return ours


def restart_owners(plan: Plan, ours: Mapping[int, int], numbers: Mapping[int, int]) -> Iterator[str]:
    """Say again who gets SIGIO for each description, now that all threads are there.

    Args:
        plan: with the owners.
        ours: descriptors by objref.
        numbers: of each thread now, by the image's.

    Yields:
        What cannot be as it was, a sentence each.
    """
    for objref, fd in ours.items():
        record = plan.files.get(objref) or plan.pipe_ends[objref]
        pid = 0
        if record.owner_type != _F_OWNER_PGRP:
            pid = numbers.get(record.owner_pid, 0)
        elif record.owner_pid == plan.process.process_group:
            pid = numbers[plan.pid]  # leads a group now, if it did not before
        if record.owner_pid and not pid:
            yield f"nobody gets SIGIO for a descriptor: it went to pid {record.owner_pid}, which is not in the image"
        restart_owner(fd, Owner(record.owner_type, pid, record.owner_signal))
