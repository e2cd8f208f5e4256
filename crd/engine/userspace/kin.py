"""Who is whose child in an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.engine.userspace.vessel import sharing_flags

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.engine.userspace.plan import TreePlan


@dataclass(frozen=True, slots=True)
class Kin:
    """A process or zombie, as far as its relatives are concerned; all numbers are those of the image."""

    pid: int
    parent: int
    group: int
    session: int
    exit_signal: int
    flags: int = 0  # of clone(2): what it shares with its parent

    @property
    def leads_session(self) -> bool:
        """Whether it has made its session."""
        return self.session == self.pid


def relatives(tree: TreePlan) -> Iterator[Kin]:
    """Yield all processes of an image, parents before children, and then its zombies."""
    for plan in tree.processes:
        process = plan.process
        yield Kin(process.pid, process.parent_pid, process.process_group, process.session, process.exit_signal,
                  sharing_flags(plan))
    for zombie, _ in tree.zombies:
        yield Kin(zombie.pid, zombie.parent_pid, zombie.process_group, zombie.session, zombie.exit_signal)
