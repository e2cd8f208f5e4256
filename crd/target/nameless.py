"""Objects without a name that crd saves (eventfd and its like), and what of them it cannot."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.errors import Obstacle
from crd.target import epoll, procfs
from crd.target.descriptors import open_descriptors
from crd.target.holders import description_holders
from crd.target.wording import process_name, process_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from crd.target.descriptors import Open
    from crd.target.task_obstacles import Kcmp
    from crd.target.tree import Family

_EVENT_COUNT_MAX = 2**64 - 2
_DEAD = -1
_LOOKS = 10
_LOOK_AGAIN_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Look:
    """What the rules know beside the descriptor: process, target, all descriptors, and kcmp(2) if there is one."""

    pid: int
    inside: Family
    table: Sequence[Open]
    kcmp: Kcmp | None


def _eventfd(entry: Open, _look: Look) -> Iterator[Obstacle]:
    if "eventfd-semaphore" not in entry.info.extra:
        yield Obstacle("fd.eventfd", entry.name, "is an eventfd, and this kernel does not tell of which kind",
                       "Run a newer kernel.")
    elif int(entry.info.extra["eventfd-count"], 16) > _EVENT_COUNT_MAX:
        yield Obstacle("fd.eventfd", entry.name, "is an eventfd that has overflowed, which only the kernel can do",
                       "Have the program read it.")


def _epoll(entry: Open, look: Look) -> Iterator[Obstacle]:
    if look.kcmp and _always_lost(entry, look, look.kcmp):
        yield Obstacle("fd.epoll", entry.name, *epoll.WHY_NOT)


def _always_lost(entry: Open, look: Look, kcmp: Kcmp) -> set[epoll.Watched]:
    """Return the registrations without a descriptor, however often one looks: busy programs change theirs meanwhile."""
    files, info = {other.fd: other.file for other in look.table}, entry.info
    lost = {*epoll.watched(info)}
    for attempt in range(_LOOKS):
        lost &= {one for one in epoll.watched(info) if epoll.holder(look.pid, entry.fd, one, files, kcmp) is None}
        if not lost or attempt == _LOOKS - 1:
            break
        time.sleep(_LOOK_AGAIN_SECONDS)
        files = {other.fd: other.file for other in open_descriptors(look.pid)}
        if entry.fd not in files:
            return set()
        info = procfs.fdinfo(look.pid, entry.fd)
    return lost


def _pidfd(entry: Open, look: Look) -> Iterator[Obstacle]:
    who = int(entry.info.extra.get("Pid", "0"))
    if who != _DEAD and who not in look.inside:
        yield Obstacle("fd.pidfd", entry.name, f"stands for another process or thread, {process_name(who)}",
                       "Close it before the checkpoint.")


def _nothing(_entry: Open, _look: Look) -> Iterator[Obstacle]:
    yield from ()


RULES: dict[str, Callable[[Open, Look], Iterator[Obstacle]]] = {
    "anon_inode:[eventfd]": _eventfd,
    "anon_inode:[timerfd]": _nothing,
    "anon_inode:[signalfd]": _nothing,
    "anon_inode:[eventpoll]": _epoll,
    "anon_inode:inotify": _nothing,
    "anon_inode:[pidfd]": _pidfd,
}
"""By link: what keeps such an object from being saved."""


def kind(link: str) -> str:
    """Return the link without a number that each object of some kernels has (pidfd:[77])."""
    return "anon_inode:[pidfd]" if link.startswith("pidfd:[") else link


def shared(look: Look) -> Iterator[Obstacle]:
    """Find the objects that processes outside of the target have too: restarted ones would be alone with theirs."""
    links = {entry.fd: entry.link for entry in look.table if kind(entry.link) in RULES and RULES[entry.link] != _pidfd}
    holders = description_holders(look.pid, links, look.inside, look.kcmp) if links and look.kcmp else {}
    for entry in look.table:
        if entry.fd in holders:
            yield Obstacle("fd.shared", entry.name, f"is open elsewhere too, in {process_names(holders[entry.fd])}",
                           "Start the program without the other one, or checkpoint it when that has ended.")
