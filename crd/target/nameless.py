"""Objects without a name that crd saves (eventfd and its like), and what of them it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.errors import Obstacle
from crd.target.holders import description_holders
from crd.target.wording import process_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from crd.target.descriptors import Open
    from crd.target.task_obstacles import Kcmp
    from crd.target.tree import Family

_EVENT_COUNT_MAX = 2**64 - 2


def _eventfd(entry: Open) -> Iterator[Obstacle]:
    if "eventfd-semaphore" not in entry.info.extra:
        yield Obstacle("fd.eventfd", entry.name, "is an eventfd, and this kernel does not tell of which kind",
                       "Run a newer kernel.")
    elif int(entry.info.extra["eventfd-count"], 16) > _EVENT_COUNT_MAX:
        yield Obstacle("fd.eventfd", entry.name, "is an eventfd that has overflowed, which only the kernel can do",
                       "Have the program read it.")


def _nothing(_entry: Open) -> Iterator[Obstacle]:
    yield from ()


RULES: dict[str, Callable[[Open], Iterator[Obstacle]]] = {
    "anon_inode:[eventfd]": _eventfd,
    "anon_inode:[timerfd]": _nothing,
    "anon_inode:[signalfd]": _nothing,
}
"""By link: what keeps such an object from being saved."""


def shared(pid: int, inside: Family, table: Sequence[Open], kcmp: Kcmp) -> Iterator[Obstacle]:
    """Find the objects that processes outside of the target have too: restarted ones would be alone with theirs."""
    links = {entry.fd: entry.link for entry in table if entry.link in RULES}
    holders = description_holders(pid, links, inside, kcmp) if links else {}
    for entry in table:
        if entry.fd in holders:
            yield Obstacle("fd.shared", entry.name, f"is open elsewhere too, in {process_names(holders[entry.fd])}",
                           "Start the program without the other one, or checkpoint it when that has ended.")
