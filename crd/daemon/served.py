"""Programs under ``crctl run``: their calls, from the kernel to a worker and back.

The daemon only listens.  Each call is carried out by a worker; one that is not answered by it, whatever has become of
it, is answered here.  When the daemon ends, the kernel answers: ENOSYS.  But systemd keeps the listeners for the daemon
after us, except one from which a call was received that has no answer yet: nobody else could give it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import select
from typing import TYPE_CHECKING

from crd.daemon.notify import keep, new_name
from crd.errors import Busy, CrdError, NativeError
from crd.native import notification

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from prometheus_client import Counter

    from crd.engine.api import CheckpointOptions
    from crd.engine.pool import WorkerPool
    from crd.native.notification import Notification

logger = logging.getLogger(__name__)

_LISTENERS_MAX = 4096
SERVED = "served"
"""What the name of a listener begins with that systemd keeps."""


class ServedPrograms:
    """The listeners of all programs whose calls are served; one call at a time of each."""

    def __init__(self, workers: WorkerPool, options: Callable[[], CheckpointOptions], crid_file: Path,
                 seconds: float, calls: Counter) -> None:
        """Serve by workers.

        Args:
            workers: who carry the calls out.
            options: how checkpoints are taken.
            crid_file: of the counter of crids.
            seconds: how long a call may take; it fails with EIO then.
            calls: counts them by how they ended.
        """
        self._workers = workers
        self._options = options
        self._crid_file = crid_file
        self._seconds = seconds
        self._calls = calls
        self._jobs: set[asyncio.Task[None]] = set()

    async def take(self, pid: int, fd: int) -> None:
        """Take over a listener that another process holds.

        Raises:
            BadRequest: it has no such descriptor, or that is no listener.
            Busy: there are too many.
        """
        async with self._workers.lease() as worker:
            self.add(await worker.fetch_listener(pid, fd))

    def add(self, listener: int, name: str = "") -> None:
        """Serve the calls of a listener, which is ours from now on, until all that it tells of have ended.

        Args:
            listener: the listener.
            name: under which systemd has kept it; "": it has not.

        Raises:
            Busy: there are too many.
        """
        if len(self._jobs) >= _LISTENERS_MAX:
            os.close(listener)
            raise Busy(f"{_LISTENERS_MAX} programs are served already", hint="Try again when some have ended.")
        job = asyncio.create_task(self._serve(listener, name or new_name(SERVED)), name=f"listener {listener}")
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def close(self) -> None:
        """Serve no more."""
        jobs = list(self._jobs)
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    async def _serve(self, listener: int, name: str) -> None:
        keep(name, listener)
        try:
            while await _is_called(listener):
                keep(name, None)
                try:
                    if call := notification.receive(listener):
                        await self._carry_out(listener, call)
                finally:
                    keep(name, listener)
            keep(name, None)
        except NativeError:
            keep(name, None)
            logger.exception("a listener", extra={"event": "served.crashed"})
        finally:
            os.close(listener)

    async def _carry_out(self, listener: int, call: Notification) -> None:
        """Have a worker answer; nothing that happens leaves the call without an answer."""
        result = "failed"
        try:
            async with asyncio.timeout(self._seconds), self._workers.lease() as worker:
                done = await worker.serve(listener, call, self._options(), self._crid_file, self.add)
        except (CrdError, TimeoutError) as error:
            logger.warning("call %d of thread %d: %s", call.number, call.tid, error or "not done in time",
                           extra={"event": "served.failed"})
        else:
            result = "done" if done.result >= 0 else "failed"
            logger.info("call %d of process %d: %d %s", call.number, done.pid, done.result, done.message,
                        extra={"event": "served.done", "pid": done.pid})
        finally:
            self._calls.labels(result).inc()
            notification.answer(listener, call.cookie, -errno.EIO)


async def _is_called(listener: int) -> bool:
    """Wait for a call; false when nobody is left who could make one."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    loop.add_reader(listener, ready.set)
    try:
        while not (found := poll.poll(0)):
            ready.clear()
            await ready.wait()
    finally:
        loop.remove_reader(listener)
    return bool(found[0][1] & select.POLLIN)
