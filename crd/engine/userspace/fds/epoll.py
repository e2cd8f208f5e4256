"""Epoll sets, and what they watch: epoll(7).

A registration belongs to a file and to the number it was made under, and the number may be closed or another file's by
now.  The task makes each again itself: for a signalfd it matters who does (signalfd(2)).  An edge that the program has
seen already is reported to it once more, which it has to bear (epoll(7): edges may come more than once).
"""

from __future__ import annotations

import os
import select
import struct
from typing import TYPE_CHECKING

from crd.engine.userspace.fds.kind import Kind, Making
from crd.errors import Obstacle, TargetUnsupported
from crd.image.objects import Epoll
from crd.image.profile import EpollTarget
from crd.native.syscall import NR, kcmp, syscall
from crd.target import epoll

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.fds.table import FileTable
    from crd.image.codec import Record

_EVENT = struct.Struct("<IQ")  # struct epoll_event, which is packed on x86-64
_ADD, _MODIFY = 1, 3
_ANYTHING_ONCE = select.EPOLLIN | select.EPOLLOUT | select.EPOLLONESHOT
_REPORTED = (1 << 28) - 1  # EP_PRIVATE_BITS of fs/eventpoll.c are those above
_F_DUPFD_CLOEXEC = 1030


class EpollSets(Kind):
    """An EPOLL each, and an EPOLL_TARGET for each registration among what the task does with its descriptors."""

    def recognises(self, one: Description) -> bool:
        """By its link."""
        return one.link == "anon_inode:[eventpoll]"

    def dump(self, found: Sequence[Description], table: FileTable) -> Iterator[Record]:
        """Find the description behind each entry; raises TargetUnsupported if no descriptor has it."""
        objrefs: dict[int, dict[int, int]] = {}
        for record in table.descriptors:
            objrefs.setdefault(record.pid, {})[record.fd] = record.objref
        for one in found:
            yield Epoll(objref=one.objref, flags=one.flags, owner=one.owner)
            holders = [(record.pid, record.fd) for record in table.descriptors if record.objref == one.objref]
            for entry in epoll.watched(one.info):
                pid, target = _target(entry, holders, objrefs, table)
                if not target:
                    raise TargetUnsupported(reasons=[Obstacle("fd.epoll", one.name, *epoll.WHY_NOT)])
                table.task_records.append(EpollTarget(
                    pid=pid, epoll=one.objref, fd=entry.fd, target=target, events=entry.events, data=entry.data))

    def make(self, making: Making) -> None:
        """Make empty sets."""
        for record in making.wanted(Epoll):
            making.add(record.objref, syscall(NR.EPOLL_CREATE1, os.O_CLOEXEC), record.flags)

    def settle(self, making: Making) -> None:
        """Register what was, first what has reported its one event and waits to be armed again."""
        targets = making.plan.of(EpollTarget)
        if not targets:
            return
        registrar = _Registrar(making)
        fired = [target for target in targets if not target.events & _REPORTED]
        registrar.exhaust(fired)
        for target in targets:
            if target not in fired:
                registrar.register(target, target.events)
        making.vessel.run()


def _target(entry: epoll.Watched, holders: Sequence[tuple[int, int]], objrefs: Mapping[int, Mapping[int, int]],
            table: FileTable) -> tuple[int, int]:
    """Return a process that has both the set and what an entry of it watches, and the objref of that; 0: nobody has."""
    for pid, epoll_fd in dict(reversed(holders)).items():
        files = {fd: table.descriptions[objref].stat for fd, objref in objrefs[pid].items()}
        fd = epoll.holder(pid, epoll_fd, entry, files, kcmp)
        if fd is not None:
            return pid, objrefs[pid][fd]
    return 0, 0


class _Registrar:
    """Has the task make registrations."""

    def __init__(self, making: Making) -> None:
        self._vessel = making.vessel
        self._by_fd = {record.fd: record for record in making.plan.descriptors}
        self._fds = {record.objref: record.fd for record in making.plan.descriptors}

    def exhaust(self, targets: Sequence[EpollTarget]) -> None:
        """Register what reports once, and have it report.

        What has nothing to report now is armed for errors and hang-ups, as the kernel insists.
        """
        for target in targets:
            self.register(target, _ANYTHING_ONCE)
            event = self._vessel.batch.data(bytes(_EVENT.size))
            self._vessel.batch.call(NR.EPOLL_WAIT, self._fds[target.epoll], event, 1, 0, what="epoll_wait")
            if self._vessel.run()[-1] == 0:
                self.register(target, select.EPOLLONESHOT, _MODIFY)

    def register(self, target: EpollTarget, events: int, how: int = _ADD) -> None:
        """Register a file under the number it had; whatever has that number now is put aside meanwhile."""
        batch, now = self._vessel.batch, self._by_fd.get(target.fd)
        event = batch.data(_EVENT.pack(events, target.data))
        call = (NR.EPOLL_CTL, self._fds[target.epoll], how, target.fd, event)
        what = f"epoll_ctl of descriptor {target.fd}"
        if now and now.objref == target.target:
            batch.call(*call, what=what)
        else:
            aside = batch.call(NR.FCNTL, target.fd, _F_DUPFD_CLOEXEC, 0) if now else None
            batch.call(NR.DUP3, self._fds[target.target], target.fd, os.O_CLOEXEC)
            batch.call(*call, what=what)
            if now and aside:
                batch.call(NR.DUP3, aside, target.fd, os.O_CLOEXEC if now.close_on_exec else 0)
                batch.call(NR.CLOSE, aside)
            else:
                batch.call(NR.CLOSE, target.fd)
        self._vessel.flush()
