"""The processes that the kernel restores an image into: each makes those that it has to, and then calls restart.

All take the same steps at the same time (spec section 8.1; for gen-D as its kernels are documented): once all are made,
process groups are named, joined and left; of kernels that know no ghosts these end; then all call restart.
"""

from __future__ import annotations

import _thread
import errno
import mmap
import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crd.engine.api import UNRESTORED
from crd.engine.kernel.forest import Node, Role
from crd.engine.kernel.guardian import close_all_but
from crd.engine.kernel.table import GHOST
from crd.errors import CrdError, NativeError
from crd.native.syscall import NR, syscall

if TYPE_CHECKING:
    from typing import NoReturn

    from crd.engine.kernel.calls import KernelCalls

REPORT = struct.Struct("=ii")
"""A pid in the image and an errno, or 0; written whole (PIPE_BUF)."""
STEPS = 4
"""What all do at the same time between being made and the call."""
_CLONE_PARENT_AND_SIGCHLD = 0x8000 | 17
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36


class Roster:
    """The new pids of all that is made, in memory that they share."""

    def __init__(self, pids: list[int]) -> None:
        """Make room for those of the image."""
        self._slots = {pid: 4 * slot for slot, pid in enumerate(pids)}
        self._memory = mmap.mmap(-1, 4 * len(pids) or 4)

    def enter(self, pid: int, new_pid: int) -> None:
        """Note who a task of the image is now."""
        struct.pack_into("=i", self._memory, self._slots[pid], new_pid)

    def __getitem__(self, pid: int) -> int:
        return int(struct.unpack_from("=i", self._memory, self._slots[pid])[0])

    def numbers(self) -> dict[int, int]:
        """Return all, by the pid in the image."""
        return {pid: self[pid] for pid in self._slots}


@dataclass(frozen=True, slots=True)
class Members:
    """What all of them share.

    Attributes:
        root: the first process of the image.
        roster: who is who.
        calls: the kernel's.
        image: descriptor that the kernel reads.
        gates: of each step and the call: each reads a byte from it before, and ends if there is none.
        report: where they say that a step is done, and why the call came back.
        coordinated: a coordinator directs the restart, and ghosts take part in it.
        reap: the coordinator waits for the root and ends as that does.
        restart_flags: of the call of a task.
    """

    root: Node
    roster: Roster
    calls: KernelCalls
    image: int
    gates: tuple[int, ...]
    report: int
    coordinated: bool = False
    reap: bool = False
    restart_flags: int = 0

    def be(self, node: Node) -> NoReturn:
        """Be a process, and make all that it has to; leave the old program for good."""
        status = 1
        try:
            close_all_but(self.image, *self.gates, self.report)
            syscall(NR.PRCTL, _PR_SET_NAME, UNRESTORED.encode() + b"\0", 0, 0, 0)
            while child := self._made_children(node):
                node = child
            status = 0 if node.role is Role.PLACEHOLDER else _Member(self, node).live()
        except (OSError, NativeError) as error:
            os.write(self.report, REPORT.pack(node.pid, error.errno or errno.EIO))
        finally:
            os._exit(status)

    def _made_children(self, node: Node) -> Node | None:
        """Make them; return None in their maker, and in each of them who it is."""
        if node.role in {Role.TASK, Role.GHOST}:
            self.roster.enter(node.pid, os.getpid())
        if node.adopts:
            syscall(NR.PRCTL, _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for child in node.early:
            if not _forked(child):
                return child
        if node.leads_session:
            os.setsid()
        for child in node.late:
            pid = _forked(child)
            if not pid:
                return child
            if child.role is Role.PLACEHOLDER and os.waitpid(pid, 0)[1]:
                raise OSError(errno.EAGAIN, "it could not fork")
        return None

    def restart(self, node: Node) -> int:
        """Call restart for a process or one of its threads; return only if it came back, with its errno or 0."""
        first = 0 if self.coordinated and node.role is not Role.COORDINATOR else self.roster[self.root.pid]
        flags = GHOST if node.role is Role.GHOST else self.restart_flags
        try:
            return self.calls.restart(first, self.image, kernel_flags=flags)
        except CrdError as error:
            return int(error.details["errno"])


def _forked(node: Node) -> int:
    """Fork; return 0 in the child."""
    return syscall(NR.CLONE, _CLONE_PARENT_AND_SIGCHLD, 0, 0, 0, 0) if node.is_sibling else os.fork()


@dataclass(slots=True)
class _Member:
    """One of them, in its own process."""

    members: Members
    node: Node
    _threads: list[_thread.LockType] = field(default_factory=list)

    def live(self) -> int:
        """Take the steps and call restart; return the exit status."""
        members, node = self.members, self.node
        for pid in node.threads:
            self._start_thread(pid)
        self._say(node.pid, 0)
        steps = self._name_group, self._join_group, self._leave_group, self._bury
        for gate, step in zip(members.gates[:STEPS], steps, strict=True):
            if not os.read(gate, 1):
                return 0
            step()
            self._say(node.pid, 0)
        if os.read(members.gates[STEPS], 1):
            for lock in self._threads:
                lock.release()
            number = members.restart(node)
            self._say(node.pid, number)
            if node.role is Role.COORDINATOR and members.reap and not number:
                code = os.waitstatus_to_exitcode(os.waitpid(members.roster[members.root.pid], 0)[1])
                return 128 - code if code < 0 else code
        return 0

    def _say(self, pid: int, number: int) -> None:
        os.write(self.members.report, REPORT.pack(pid, number))

    def _start_thread(self, pid: int) -> None:
        """Start a thread that calls restart when its lock is released, and wait until its number is known."""
        known, lock = _thread.allocate_lock(), _thread.allocate_lock()

        def live() -> None:
            self.members.roster.enter(pid, _thread.get_native_id())
            known.release()
            with lock:
                self._say(pid, self.members.restart(self.node))

        known.acquire()
        lock.acquire()
        self._threads.append(lock)
        _thread.start_new_thread(live, ())
        known.acquire()

    # --- the steps ------------------------------------------------------------------------------

    def _name_group(self) -> None:
        if self.node.adopts:
            syscall(NR.PRCTL, _PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        if self.node.names_group and not self.node.leads_session:
            os.setpgid(0, 0)

    def _join_group(self) -> None:
        if not self.node.names_group:
            self._enter_group()

    def _leave_group(self) -> None:
        """What names a group and is in another one may leave it only now that others are in it."""
        if self.node.names_group:
            self._enter_group()

    def _enter_group(self) -> None:
        group = self.node.process_group
        if group and group != self.node.pid and not self.node.leads_session:
            os.setpgid(0, self.members.roster[group])

    def _bury(self) -> None:
        if self.members.coordinated:
            return
        if self.node.role is Role.GHOST:
            os._exit(0)
        for node in self.members.root.family():
            if node.role is Role.GHOST and node.parent is self.node:
                os.waitpid(self.members.roster[node.pid], 0)
