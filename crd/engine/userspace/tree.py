"""Stopping a whole tree: a process and all its descendants, so that none of them escapes."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crd.engine.userspace import limits, waits
from crd.engine.userspace.freeze import Frozen
from crd.engine.userspace.haste import Haste
from crd.errors import Obstacle, TargetGone, TargetUnsupported
from crd.target import procfs
from crd.target.tree import Family, has_ended
from crd.target.wording import process_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.engine.userspace.caller import Caller
    from crd.target.model import Stat, Status

_LET_GO_SECONDS = 1.0
_ENDING_SECONDS = 0.2
_LOOK_AGAIN_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Zombie:
    """A child that has ended and that its parent has not waited for."""

    pid: int
    stat: Stat
    status: Status


@dataclass(slots=True)
class FrozenTree:
    """Processes that are all stopped, parents before their children.

    Attributes:
        pid: of the root.
        descendants: whether those belong to it.
        caller: as of ``frozen``.
        processes: by pid.
        zombies: by pid.
        frozen_at: time.monotonic() before the first thread was seized.
        stop_seconds: from there to the last detach; set by thaw.
    """

    pid: int
    descendants: bool
    caller: Caller | None = None
    processes: dict[int, Frozen] = field(default_factory=dict)
    zombies: dict[int, Zombie] = field(default_factory=dict)
    frozen_at: float = 0.0
    stop_seconds: float = 0.0
    haste: Haste = field(default_factory=Haste)
    _prepared: dict[int, Frozen] = field(default_factory=dict)

    @property
    def root(self) -> Frozen:
        """The first process."""
        return self.processes[self.pid]

    def thaw(self) -> None:
        """Let every thread go; a signal that was about to be delivered is."""
        states = [*self._prepared.values(), *self.processes.values()]
        for state in states:
            state.detach()
        self.stop_seconds = time.monotonic() - self.frozen_at
        deadline = time.monotonic() + _LET_GO_SECONDS
        for state in states:
            state.let_go(deadline)
        self.haste.relax()

    def prepare(self) -> None:
        """Make ready what takes time, for the processes that there are now.

        Raises:
            TargetGone: the root has ended.
        """
        for pid in Family(self.pid, descendants=self.descendants):
            try:
                self._prepared[pid] = Frozen(pid, caller=self.caller)
            except TargetGone:
                if pid == self.pid:
                    raise
        for (pid, tid), wait in waits.look((pid, tid) for pid, state in self._prepared.items()
                                           for tid in state.room.tids).items():
            self._prepared[pid].waits[tid] = wait

    def stop(self, seconds: float) -> None:
        """Stop processes, parents first, until a pass over all finds no new child.

        A child of a process that is stopped can vanish, but none can come: except that a stopped process adopts the
        children of descendants that end while they are not stopped yet (PR_SET_CHILD_SUBREAPER).  A parent that waits
        in vfork(2) stops when its child executes or ends, which nobody keeps it from: it is stopped after the parent.
        Those whose parents are stopped are on their way to a stop all at the same time.

        Raises:
            FreezeTimeout: a thread did not stop in time.
            TargetGone: the root ended.
            TracerBusy, TraceDenied: one of them may not be traced.
            TargetUnsupported: a process has no main thread any more.
        """
        self.frozen_at = time.monotonic()
        deadline = self.frozen_at + seconds
        self._stop(self.pid, deadline)
        new = self._children(self.root)
        while new:
            while new:
                generation, new = new, []
                for pid in generation:
                    if pid in self._prepared:
                        self._prepared[pid].begin()
                for pid in generation:
                    if self._stop(pid, deadline):
                        new += self._children(self.processes[pid])
            for state in self.processes.values():
                new += [pid for pid in self._children(state, 1) if self._is_new(pid)]

    def _children(self, state: Frozen, n_threads: int | None = None) -> list[int]:
        """Return the children of all threads, or of the first ones: the first one is given those of others."""
        return state.group.children(state.pid, n_threads) if self.descendants else []

    def _is_new(self, pid: int) -> bool:
        return pid not in self.processes and pid not in self.zombies

    def _stop(self, pid: int, deadline: float) -> bool:
        """Stop a process; false if it is a zombie or gone."""
        while self._is_new(pid):
            try:
                if pid not in self._prepared:
                    self._prepared[pid] = Frozen(pid, caller=self.caller)
                self._prepared[pid].stop(deadline)
            except TargetGone:
                if pid == self.pid:
                    raise
                self._drop(pid)
                if has_ended(pid):
                    self._note_ended(pid)
                    break
                if time.monotonic() > deadline:
                    raise
            else:
                self.processes[pid] = self._prepared.pop(pid)
                return True
        return False

    def _drop(self, pid: int) -> None:
        """Let go what has been stopped of a process whose main thread has ended."""
        if state := self._prepared.pop(pid, None):
            state.detach()
            state.let_go(time.monotonic())
            state.close()

    def _note_ended(self, pid: int) -> None:
        """Look at a process whose main thread has ended; its other threads are on their way out, or it is refused."""
        deadline = time.monotonic() + _ENDING_SECONDS
        with suppress(TargetGone):
            while procfs.n_threads(pid) > 1:
                if time.monotonic() > deadline:
                    raise TargetUnsupported(reasons=[Obstacle(
                        "task.zombie", process_name(pid), "has lost its main thread (the others live on)")], pid=pid)
                time.sleep(_LOOK_AGAIN_SECONDS)
            stat = procfs.stat(pid)
            if stat.state == "Z" and stat.parent_pid in self.processes:
                self.zombies[pid] = Zombie(pid, stat, procfs.status(pid))

    def close(self) -> None:
        """Close what is open of the processes."""
        for state in (*self._prepared.values(), *self.processes.values()):
            state.close()


@contextmanager
def frozen(pid: int, seconds: float, *, descendants: bool = True,
           caller: Caller | None = None) -> Iterator[FrozenTree]:
    """Stop all threads of a process and of its descendants for as long as the context lasts, or until they are thawed.

    Args:
        pid: of the process.
        seconds: how long the freeze itself may take.
        descendants: whether those are stopped, too.
        caller: a thread that waits for this checkpoint: if it is of the tree, it stays stopped.

    Raises:
        as ``FrozenTree.stop``.
    """
    limits.raise_our_own()
    tree = FrozenTree(pid, descendants, caller)
    with ExitStack() as stack:
        stack.callback(tree.close)
        tree.prepare()
        stack.callback(tree.thaw)
        tree.haste.hurry()
        tree.stop(seconds)
        yield tree
