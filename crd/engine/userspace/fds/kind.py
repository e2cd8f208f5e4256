"""What a kind of kernel object must know of itself to get into an image and out of it again.

A kind is one module with one subclass of ``Kind``: dump and restart side by side.  ``kinds.KINDS`` lists them, in the
order in which they are asked; what a kind does not need it leaves out.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from crd.engine.api import Files
    from crd.engine.userspace.broker import Broker
    from crd.engine.userspace.clash import Clash
    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.fds.table import FileTable
    from crd.engine.userspace.fds.terminal import Masters
    from crd.engine.userspace.mem.sysv import Attached
    from crd.engine.userspace.plan import Plan
    from crd.engine.userspace.vessel import Vessel
    from crd.errors import Obstacle
    from crd.image.codec import Record

R = TypeVar("R", bound="Record")


class TryLaterError(Exception):
    """An object is in a state that cannot be captured, and will hardly be for long.

    Attributes:
        obstacle: what to say if it is.
    """

    def __init__(self, obstacle: Obstacle) -> None:
        super().__init__(obstacle.reason)
        self.obstacle = obstacle


@dataclass(slots=True)
class Making:
    """Descriptions on their way from an image into its vessels, some of them into several.

    Attributes:
        plan: of the process whose turn it is, with the shared objects of all; the first one's as long as none is.
        vessel: of that process.
        vessels: of all processes, by pid in the image.
        broker: who has them until then.
        files: what is done about files that have changed.
        masters: our descriptors of terminals.
        contents: our descriptor, to read and write, of each file whose content comes from the image, by objref.
        ours: our descriptor of each description, by objref.
        peers: our descriptor of the other end of a socket, by objref.
        segments: of System V shared memory, attached by us, by objref.
        notes: what cannot be as it was, a sentence each.
    """

    plan: Plan
    vessel: Vessel
    vessels: Mapping[int, Vessel]
    broker: Broker
    files: Files
    masters: Masters
    contents: dict[int, int] = field(default_factory=dict)
    ours: dict[int, int] = field(default_factory=dict)
    peers: dict[int, int] = field(default_factory=dict)
    segments: dict[int, Attached] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def wanted(self, kind: type[R]) -> list[R]:
        """Return the descriptions of a kind of record that are open, or in flight: not what is only mapped."""
        opened = self.plan.shared.opened
        return [record for record in self.plan.of(kind) if record.objref in opened]  # type: ignore[attr-defined]

    def turn_to(self, plan: Plan) -> None:
        """Go on with another process."""
        self.plan, self.vessel = plan, self.vessels[plan.pid]
        self.broker.act_for(plan.leader)

    def act_as(self, pid: int) -> None:
        """Have the next calls made by the vessel of a process of the image, or of the first if it has no such one."""
        self.vessel = self.vessels.get(pid, self.vessels[self.plan.pid])

    def act_for(self, objref: int) -> None:
        """Have the broker open files with the rights of the first process that has a description, if one has."""
        if plan := self.plan.shared.opened.get(objref):
            self.broker.act_for(plan.leader)

    def add(self, objref: int, fd: int, flags: int | None = None) -> None:
        """Take over our descriptor of a description, and give it these flags."""
        self.ours[objref] = self.broker.hold(fd)
        if flags is not None:
            self.set_flags(objref, flags)

    def set_flags(self, objref: int, flags: int) -> None:
        """Give a description its flags (F_SETFL), but O_ASYNC, which the task has to ask for."""
        fcntl.fcntl(self.ours[objref], fcntl.F_SETFL, flags & ~os.O_ASYNC)


class Kind:
    """One kind of object that descriptors are open on.

    The dump happens while the target is stopped: nothing may be taken out of an object, and nothing may wait.  The
    steps of a restart come in the order in which they stand here, each for all kinds before the next.
    """

    def recognises(self, one: Description) -> bool:
        """Whether a description is of this kind."""
        raise NotImplementedError

    def discover(self, found: Sequence[Description], table: FileTable) -> None:
        """Add to the table what is in flight in some descriptions of this kind."""

    def dump(self, found: Sequence[Description], table: FileTable) -> Iterator[Record]:
        """Yield the records of all descriptions of this kind, one each under its objref, and of what is behind them.

        Args:
            found: the descriptions, in the order of their descriptors; at least one.
            table: all descriptions of all kinds, and where further objects get their numbers.

        Raises:
            TargetUnsupported: one is in a state that cannot be made again.
            TryLaterError: just now.
        """
        raise NotImplementedError

    def clashes(self, plan: Plan, files: Files) -> Iterator[Clash]:  # noqa: ARG002
        """Tell, before anything is made, which objects of this kind cannot be, and why."""
        yield from ()

    def prepare(self, making: Making) -> None:
        """Make what memory is mapped from, or filled like memory, before memory is."""

    def make(self, making: Making) -> None:
        """Make the descriptions, with descriptors of ours; the vessels have their numbers, but nothing runs.

        Raises:
            RestartError: it cannot be done; whatever has a name is gone again once the broker is left.
        """
        raise NotImplementedError

    def connect(self, making: Making) -> None:
        """Do what needs other descriptions, which are all made."""

    def settle(self, making: Making) -> None:
        """Add to the vessel's batch what only the task itself can do with its descriptors, which are all in place.

        This comes once for each process that has a file table of its own.
        """

    def number(self, making: Making, numbers: Mapping[int, int]) -> None:
        """Do what needs threads, which are all there; ``numbers`` has that of each now, by the image's."""

    def arm(self, making: Making) -> None:
        """Start what runs by the clock; the next thing that happens is that the task runs."""
