"""Where the daemon gets engine workers from."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from crd.engine.client import Worker, readable
from crd.errors import WorkerDied

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator
    from pathlib import Path
    from types import TracebackType
    from typing import Self

_PID_BYTES_MAX = 16
_REST_SECONDS = 5.0
"""That a worker is kept for the next checkpoint."""


def _connect(path: Path) -> socket.socket:
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        control.connect(str(path))
    except OSError as error:
        control.close()
        raise WorkerDied(f"no engine worker can be started: {path}: {error.strerror}",
                         hint="Does crd-engine.socket run?  An empty engine.socket does without it.") from error
    return control


def _discard(asking: asyncio.Future[tuple[int, int]]) -> None:
    if not asking.cancelled() and not asking.exception():
        os.close(asking.result()[1])


class WorkerPool:
    """Gives out workers, which are forked by a process that has loaded all they need.  An async context manager."""

    def __init__(self, nursery: Path | None = None) -> None:
        """Have no such process yet.

        Args:
            nursery: a socket; who connects to it gets a nursery of its own (``systemd/crd-engine.socket``).  None: it
                is a child of ours.
        """
        self._where = nursery
        self._nursery: Process | None = None
        self._control: socket.socket | None = None
        self._turn = asyncio.Lock()
        self._resting: dict[Worker, asyncio.TimerHandle] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        for worker in list(self._resting):
            self._dismiss(worker)
        await asyncio.gather(*self._ending)
        await self._end()

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Worker]:
        """Give out a new worker, which does not outlive the context.

        Raises:
            WorkerDied: none can be started.
        """
        worker = await self._worker()
        try:
            yield worker
        finally:
            await asyncio.shield(worker.end())

    @asynccontextmanager
    async def lease_for_checkpoint(self) -> AsyncIterator[Worker]:
        """Give out a worker, maybe one that has taken images and is as new, as it then may be kept for the next.

        Raises:
            WorkerDied: none can be started.
        """
        worker = self._rested() or await self._worker()
        fit = False
        try:
            yield worker
            fit = worker.is_ready_again
        finally:
            if fit:
                self._rest(worker)
            else:
                await asyncio.shield(worker.end())

    def _rest(self, worker: Worker) -> None:
        worker.forget()
        self._resting[worker] = asyncio.get_running_loop().call_later(_REST_SECONDS, self._dismiss, worker)

    def _rested(self) -> Worker | None:
        """Return the worker that has rested least, so that those ones end of which there are too many."""
        while self._resting:
            worker = next(reversed(self._resting))
            if worker.is_idle():
                self._resting.pop(worker).cancel()
                return worker
            self._dismiss(worker)
        return None

    def _dismiss(self, worker: Worker) -> None:
        self._resting.pop(worker).cancel()
        ending = asyncio.create_task(worker.end())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _worker(self) -> Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        asking = asyncio.ensure_future(self._ask_in_turn(theirs))
        try:
            pid, pidfd = await asyncio.shield(asking)
        except BaseException:
            ours.close()  # which ends a worker that comes too late
            asking.add_done_callback(_discard)
            raise
        return Worker(pid, pidfd, ours)

    async def _ask_in_turn(self, theirs: socket.socket) -> tuple[int, int]:
        with theirs:
            async with self._turn:
                return await self._ask(theirs)

    async def _ask(self, theirs: socket.socket) -> tuple[int, int]:
        """Have a worker made, by another nursery if the one there was has ended."""
        for _ in range(2):
            if not self._control:
                await self._begin()
            assert self._control  # noqa: S101
            try:
                socket.send_fds(self._control, [b"+"], [theirs.fileno()])
                await readable(self._control)
                data, fds, _flags, _address = socket.recv_fds(self._control, _PID_BYTES_MAX, 1)
            except OSError:
                data = b""
            if data and not fds:
                raise WorkerDied("no descriptor is left for an engine worker", hint="Raise LimitNOFILE of crd.service.")
            if data:
                return int(data), fds[0]
            await self._end()
        raise WorkerDied("no engine worker can be started", hint="The daemon's log says why.")

    async def _begin(self) -> None:
        if self._where:
            self._control = _connect(self._where)
        else:
            await self._spawn()

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._nursery = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "crd.engine.nursery", str(theirs.fileno()), pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, start_new_session=True)
        except OSError as error:
            ours.close()
            raise WorkerDied(f"no engine worker can be started: {error.strerror}") from error
        finally:
            theirs.close()
        self._control = ours

    async def _end(self) -> None:
        if self._control:
            self._control.close()
            self._control = None
        if self._nursery:
            await self._nursery.wait()
            self._nursery = None
