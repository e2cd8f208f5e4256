"""Tasks for the kernel to restore an image into: made, watched, and ended unless it does (spec sections 5.5, 8.1)."""

from __future__ import annotations

import errno
import os
import select
import sys
import time
from contextlib import suppress
from signal import SIGKILL
from typing import TYPE_CHECKING

from crd.engine.kernel.errnos import restart_error
from crd.engine.kernel.forest import Node, Role
from crd.engine.kernel.guardian import Guardian
from crd.engine.kernel.members import REPORT, STEPS, Members, Roster
from crd.errors import CrdError, RestartError, RestartUnsupported, TargetGone
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

    from crd.engine.kernel.calls import KernelCalls

SECONDS_WITHOUT_PROGRESS = 120.0
"""So long a task may take to be made, or the kernel to read on in the image."""
_POLL_SECONDS = 0.5
_SECONDS_FOR_THE_CAUSE = 1.0
"""When a task has failed, the first one may yet say why: the others only learn that it gave up (EAGAIN)."""
_SECONDS_FOR_THE_END = 5.0
_KEEP = "keep"


class Tasks:
    """Forked processes that wait for the word to call restart.  A context manager: unless restored, they end with it.

    Attributes:
        root_pid: of the first.
        numbers: of each task in the image, and the pid it has now.
        all_numbers: with those that are only the names of sessions and process groups.
        stand_in_pid: of who waits for the root in the caller's place, and ends as it does; 0: the root is its child.
    """

    def __init__(self, root: Node, image: int, calls: KernelCalls, *, coordinated: bool = False,
                 reap: bool = False) -> None:
        """Fork the first, which makes the others.

        Args:
            root: the first task and all that it makes (``forest``).
            image: descriptor that the kernel reads, open for reading; it stands at the beginning by the time of ``go``.
            calls: the kernel's.
            coordinated: the restart needs a coordinator, if there is more than one task.
            reap: the caller waits for the root (``stand_in_pid``).

        Raises:
            RestartError: they cannot be made.
        """
        made = [node for node in root.family() if node.role is not Role.PLACEHOLDER]
        self._tasks = [pid for node in made if node.role is Role.TASK for pid in (node.pid, *node.threads)]
        self._ghosts = [node.pid for node in made if node.role is Role.GHOST]
        several = len(self._tasks) + len(self._ghosts) > 1
        self._coordinated = coordinated and several
        self._first = Node(0, None, role=Role.COORDINATOR, late=[root]) if self._coordinated else root
        self._n_members = len(made) + self._coordinated
        self._image = image
        gates, self._go = zip(*(os.pipe2(os.O_CLOEXEC) for _ in range(STEPS + 1)), strict=True)
        self._reports, self._report = os.pipe2(os.O_CLOEXEC)
        self._guardian = Guardian(_end)
        roster = Roster([*self._tasks, *self._ghosts])
        members = Members(root, roster, calls, image, gates, self._report, self._coordinated, reap,
                          0 if several else calls.numbers.restart_flags)
        self.numbers: dict[int, int] = {}
        self.all_numbers: dict[int, int] = {}
        self._roster = roster
        sys.stderr.flush()
        self._child = os.fork()
        if not self._child:
            members.be(self._first)
        for fd in (*gates, self._report):
            os.close(fd)
        self.root_pid = 0
        self.stand_in_pid = self._child if self._coordinated and reap else 0

    def __enter__(self) -> Self:
        """Wait until all are there, in their groups and sessions."""
        try:
            self._guardian.tell(_named(self._child))
            self._await(self._n_members)
            self.all_numbers = numbers = self._roster.numbers()
            for pid in numbers.values():
                with suppress(TargetGone):
                    self._guardian.tell(_named(pid))
            n_alive = self._n_members
            for step in range(STEPS):
                os.write(self._go[step], bytes(n_alive))
                if step == STEPS - 1 and not self._coordinated:
                    n_alive -= len(self._ghosts)
                self._await(n_alive)
            self._n_members = n_alive
            self.numbers = {pid: numbers[pid] for pid in self._tasks}
            self.root_pid = self.numbers[self._tasks[0]]
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _await(self, n_reports: int) -> None:
        """Wait for the reports of a step."""
        for _ in range(n_reports):
            if not self._reported_within(SECONDS_WITHOUT_PROGRESS):
                raise RestartError("the tasks for the kernel to restore do not come into being",
                                   hint="Look for what has killed or stopped them.")
            report = os.read(self._reports, REPORT.size)
            pid, number = REPORT.unpack(report) if report else (0, -1)
            if number == errno.EINVAL:
                raise RestartUnsupported(f"task {pid} has to inherit tasks whose parents have ended: before Linux 3.4 "
                                         "only the first process of a pid namespace does")
            if number:
                why = os.strerror(number) if number > 0 else "they have ended"
                raise RestartError(f"the tasks for the kernel to restore cannot be made: {why} (task {pid})",
                                   hint="Look at the limits of crd.")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for fd in (*self._go, self._reports):
            os.close(fd)
        self._guardian.__exit__(kind, error, trace)
        if error or (self._coordinated and not self.stand_in_pid):
            _wait_for(self._child)

    def go(self, image_bytes: int) -> None:
        """Let all call restart, and wait until the kernel has made them the tasks of the image.

        A coordinator's call returns then.  Without one the sign of success is the end of the reports, since every
        descriptor of the tasks is closed, and that the kernel has read the image to its end.

        Args:
            image_bytes: up to and with the tail.

        Raises:
            CrdError: the kernel refuses, or does not come to an end; they end with the context.
        """
        os.write(self._go[STEPS], bytes(self._n_members))
        failed: dict[int, int] = {}
        decisive = 0 if self._coordinated else self._tasks[0]
        while decisive not in failed and self._goes_on(within=_SECONDS_FOR_THE_CAUSE if failed else 0):
            report = os.read(self._reports, REPORT.size)
            if not report:
                break
            pid, number = REPORT.unpack(report)
            failed[pid] = number
        if failed:
            number = failed.get(decisive, next(iter(failed.values())))
            if number:
                raise restart_error(number)
            if not self._coordinated:
                raise RestartUnsupported("the kernel restores nothing but the name of the caller: it has the first of "
                                         "the patches alone")
        elif (offset := self._offset()) < image_bytes:
            raise RestartError(f"the kernel ended the tasks while it read the image, at offset {offset}",
                               hint="Its log may say why; crd inspect --records shows what stands there.")
        self._guardian.tell(_KEEP)

    def _goes_on(self, within: float) -> bool:
        """Wait for the next report or the end of all: at most so long, or as long as the kernel reads on in the image.

        Raises:
            RestartError: it does not read on.
        """
        if within:
            return self._reported_within(within)
        offset, since = self._offset(), time.monotonic()
        while not self._reported_within(_POLL_SECONDS):
            if offset != (offset := self._offset()):
                since = time.monotonic()
            elif time.monotonic() - since > SECONDS_WITHOUT_PROGRESS:
                raise RestartError(f"the kernel has not read on in the image for {SECONDS_WITHOUT_PROGRESS:.0f} s, at "
                                   f"offset {offset}: the restart was given up",
                                   hint="A tree with tasks too few or too many waits for ever.")
        return True

    def _offset(self) -> int:
        return os.lseek(self._image, 0, os.SEEK_CUR)

    def _reported_within(self, seconds: float) -> bool:
        return bool(select.select([self._reports], [], [], seconds)[0])


def _named(pid: int) -> str:
    return f"{pid} {procfs.stat(pid).start_time}"


def _wait_for(child: int) -> None:
    """Take note of a child's end; not for ever, since it may be stuck in the kernel."""
    deadline = time.monotonic() + _SECONDS_FOR_THE_END
    with suppress(ChildProcessError):
        while not os.waitpid(child, os.WNOHANG)[0] and time.monotonic() < deadline:
            time.sleep(0.01)


def _end(told: Iterable[str]) -> None:
    """Kill tasks that were not restored; the guardian's work."""
    told = list(told)
    if _KEEP in told:
        return
    for pid, start_time in (map(int, line.split()) for line in told):
        with suppress(CrdError, ProcessLookupError):
            if procfs.stat(pid).start_time == start_time:
                os.kill(pid, SIGKILL)
