"""The file table, made again: every description opened once by us, pulled by the vessel and put under its numbers."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from crd.engine.userspace.fds import lock
from crd.engine.userspace.fds.description import restart_owner
from crd.engine.userspace.fds.kind import Making
from crd.engine.userspace.fds.kinds import KINDS
from crd.errors import RestartError, RestartUnsupported
from crd.image.owner import Owner
from crd.native.syscall import NR

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from crd.engine.api import Files
    from crd.engine.userspace.broker import Broker
    from crd.engine.userspace.clash import Clash
    from crd.engine.userspace.fds.terminal import Masters
    from crd.engine.userspace.plan import Plan
    from crd.engine.userspace.vessel import Vessel

_ALL_FDS = 0xFFFF_FFFF


def clashes(plans: Sequence[Plan], files: Files) -> Iterator[Clash]:
    """Tell which descriptions and locks of an image cannot be had."""
    for kind in KINDS:
        yield from kind.clashes(plans[0], files)
    for plan in plans:
        yield from lock.clashes(plan)


def prepare(plans: Sequence[Plan], vessels: Mapping[int, Vessel], broker: Broker, files: Files,
            masters: Masters) -> Making:
    """Make what memory is mapped from; raises RestartError."""
    making = Making(plans[0], vessels[plans[0].pid], vessels, broker, files, masters)
    for kind in KINDS:
        kind.prepare(making)
    return making


def restart(making: Making, plans: Sequence[Plan]) -> None:
    """Give the vessels, whose memory is filled, their descriptors and locks.

    Raises:
        ResourceChanged: a file is missing or not what it was, or somebody else has locked it.
        RestartUnsupported: a number is above our limit of open files.
    """
    making.turn_to(plans[0])
    for kind in KINDS:
        kind.make(making)
    for kind in KINDS:
        kind.connect(making)
    for plan in plans:
        lock.restart_of_descriptions(plan, making.ours)
    for plan in plans:
        if not plan.sharing.files:
            making.turn_to(plan)
            _furnish(making)
    making.turn_to(plans[0])


def _furnish(making: Making) -> None:
    """Give one vessel its descriptors and locks."""
    plan, vessel = making.plan, making.vessel
    _place(making)
    for kind in KINDS:
        kind.settle(making)
    _settle_signals(making)
    lock.restart_leases(plan, vessel.batch)
    lock.restart_posix(plan, vessel.batch)
    try:
        vessel.run()
    except RestartError:
        lock.check(plan)  # says who has it
        raise


def _place(making: Making) -> None:
    """Have the vessel pull all descriptions above the highest number it will have, and put each under its own."""
    plan, vessel, broker = making.plan, making.vessel, making.broker
    above = max((record.fd for record in plan.descriptors), default=-1) + 1
    needed = dict.fromkeys(record.objref for record in plan.descriptors)
    if above + len(needed) >= broker.fds_max:
        raise RestartUnsupported(f"descriptor {above - 1} is above the limit of open files, {broker.fds_max}")
    places = {objref: above + index for index, objref in enumerate(needed)}
    for objref in needed:
        vessel.batch.call(NR.DUP2, broker.pull(vessel.batch, making.ours[objref]), places[objref])
        vessel.flush()
    if above:
        vessel.batch.call(NR.CLOSE_RANGE, 0, above - 1, 0)
    for record in plan.descriptors:
        vessel.batch.call(NR.DUP3, places[record.objref], record.fd, os.O_CLOEXEC if record.close_on_exec else 0,
                          what=f"descriptor {record.fd}")
        vessel.flush()
    vessel.batch.call(NR.CLOSE_RANGE, above, _ALL_FDS, 0)
    vessel.run()


def _settle_signals(making: Making) -> None:
    """Have the task ask for SIGIO (O_ASYNC) itself: the signal tells the descriptor that this was asked for."""
    first = {record.objref: record.fd for record in reversed(making.plan.descriptors)}
    for objref, fd in first.items():
        flags = making.plan.objects[objref].flags
        if flags & os.O_ASYNC and making.plan.shared.opened[objref] is making.plan:
            making.vessel.batch.call(NR.FCNTL, fd, fcntl.F_SETFL, flags, what=f"O_ASYNC of descriptor {fd}")
            making.vessel.flush()


def number(making: Making, numbers: Mapping[int, int]) -> None:
    """Do what needs the threads, which are all there: say again who gets SIGIO, and what the kinds need them for.

    Args:
        making: the descriptions.
        numbers: of each thread and process group now, by the image's.
    """
    for kind in KINDS:
        kind.number(making, numbers)
    for objref, fd in making.ours.items():
        owner: Owner = making.plan.objects[objref].owner
        pid = numbers.get(owner.pid, 0)
        if owner.pid and not pid:
            making.notes.append(f"nobody gets SIGIO for a descriptor: it went to pid {owner.pid}, which is not in the "
                                "image")
        restart_owner(fd, Owner(kind=owner.kind if pid else 0, pid=pid, signal=owner.signal))


def arm(making: Making) -> None:
    """Start what runs by the clock."""
    for kind in KINDS:
        kind.arm(making)
