"""Tasks for the kernel to restore an image into: a tree of processes that all call restart (spec section 5.5)."""

from __future__ import annotations

import os
import select
import struct
import sys
import time
from contextlib import suppress
from signal import SIGKILL
from typing import TYPE_CHECKING, NoReturn

from crd.engine.kernel.errnos import restart_error
from crd.engine.kernel.guardian import Guardian, close_all_but
from crd.errors import CrdError, RestartError, RestartUnsupported
from crd.target import procfs

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from crd.engine.kernel.calls import KernelCalls

_REPORT = struct.Struct("=ii")
"""Old and new pid, then, if the call comes back, pid and errno; written whole (PIPE_BUF)."""
_KEEP = "keep"
_SECONDS_FOR_THE_CAUSE = 1.0
"""When a task has failed, the first one may yet say why: the others only learn that it gave up (EAGAIN)."""
_CAME_BACK = 0


class Tasks:
    """Forked processes that wait for the word to call restart.  A context manager: unless restored, they end with it.

    Attributes:
        numbers: of each task in the image, and the pid it has now; the root is the first.
    """

    def __init__(self, children: dict[int, list[int]], image: int, calls: KernelCalls) -> None:
        """Fork them.

        Args:
            children: of each task; the first one in it is the root.
            image: descriptor that the kernel reads, open for reading; it stands at the beginning by the time of ``go``.
            calls: the kernel's.

        Raises:
            RestartError: they cannot be made.
        """
        self._children, self._image, self._calls = children, image, calls
        self._gate, self._go = os.pipe2(os.O_CLOEXEC)
        self._reports, self._report = os.pipe2(os.O_CLOEXEC)
        self._guardian = Guardian(_end)
        self.numbers: dict[int, int] = {}
        sys.stderr.flush()
        self.root_pid = os.fork()
        if not self.root_pid:
            self._be(next(iter(children)))
        os.close(self._gate)
        os.close(self._report)

    def __enter__(self) -> Self:
        """Wait until all are there."""
        try:
            for _ in self._children:
                old, new = self._made()
                self.numbers[old] = new
                self._guardian.tell(f"{new} {procfs.stat(new).start_time}")
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _made(self) -> tuple[int, int]:
        report = os.read(self._reports, _REPORT.size)
        old, new = _REPORT.unpack(report) if report else (0, 0)
        if not new:
            raise RestartError("the tasks for the kernel to restore cannot be made", hint="Look at the limits of crd.")
        return old, new

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        os.close(self._go)
        os.close(self._reports)
        self._guardian.__exit__(kind, error, trace)
        if error:
            with suppress(ChildProcessError):
                os.waitpid(self.root_pid, 0)

    def go(self) -> None:
        """Let all call restart, and wait until the kernel has made them the tasks of the image.

        That closes every descriptor they have, so that the end of their reports is the sign of success.

        Raises:
            CrdError: the kernel refuses one of them; they end with the context.
        """
        os.write(self._go, bytes(len(self._children)))
        failed: dict[int, int] = {}
        deadline = float("inf")
        while self.root_pid not in failed and self._reported_before(deadline):
            report = os.read(self._reports, _REPORT.size)
            if not report:
                break
            pid, number = _REPORT.unpack(report)
            failed[pid] = number
            deadline = min(deadline, time.monotonic() + _SECONDS_FOR_THE_CAUSE)
        if failed:
            number = failed.get(self.root_pid, next(iter(failed.values())))
            raise restart_error(number) if number != _CAME_BACK else RestartUnsupported(
                "the kernel restores nothing but the name of the caller: it has the first of the patches alone")
        self._guardian.tell(_KEEP)

    def _reported_before(self, deadline: float) -> bool:
        left = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
        return bool(select.select([self._reports], [], [], left)[0])

    # --- in the tasks ---------------------------------------------------------------------------

    def _be(self, number: int, root_pid: int = 0) -> NoReturn:
        """Be a task of the tree, with its children; leave the old program for good."""
        status = 1
        try:
            root_pid = root_pid or os.getpid()
            close_all_but(self._image, self._gate, self._report)
            for child in self._children[number]:
                if not os.fork():
                    self._be(child, root_pid)
            os.write(self._report, _REPORT.pack(number, os.getpid()))
            if os.read(self._gate, 1):
                os.write(self._report, _REPORT.pack(os.getpid(), self._restart(root_pid)))
            status = 0
        except OSError:
            os.write(self._report, _REPORT.pack(number, 0))
        finally:
            os._exit(status)

    def _restart(self, root_pid: int) -> int:
        """Call restart; return only if it came back, with its errno."""
        try:
            return self._calls.restart(root_pid, self._image, alone=len(self._children) == 1)
        except CrdError as error:
            return int(error.details["errno"])


def _end(told: list[str]) -> None:
    """Kill tasks that were not restored; the guardian's work."""
    if _KEEP in told:
        return
    for pid, start_time in (map(int, line.split()) for line in told):
        with suppress(CrdError, ProcessLookupError):
            if procfs.stat(pid).start_time == start_time:
                os.kill(pid, SIGKILL)
