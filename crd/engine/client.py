"""The daemon's handle on engine workers: each used once, and killed when it is late."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from crd.engine.api import (
    CheckpointOptions,
    CheckpointResult,
    RestartOptions,
    RestartPlan,
    RestartResult,
    ServedCall,
)
from crd.engine.channel import FDS_MAX, MESSAGE_BYTES_MAX
from crd.engine.rehearsal import Rehearsal
from crd.errors import CrdError, WorkerDied
from crd.target.model import CheckReport

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from crd.native.notification import Notification

_PID_BYTES_MAX = 16
ProcessKey = tuple[int, int]
"""Pid and start time: together they name a process for ever."""


@dataclass(frozen=True, slots=True)
class HeldNotes:
    """Notes of what processes write (``crd.engine.userspace.notes``): their descriptors, by process."""

    fds: dict[ProcessKey, int]
    since: bool


class Worker:
    """One worker process, good for one call."""

    def __init__(self, pid: int, pidfd: int, channel: socket.socket) -> None:
        """Hold a worker, its pidfd and channel; ``WorkerPool.lease`` gives them out."""
        self.pid = pid
        self._pidfd = pidfd
        self._channel = channel
        self._notes: dict[ProcessKey, int] = {}
        self._listeners: list[int] = []

    async def begin_checkpoint(self, pid: int, fd: int, options: CheckpointOptions, crid_file: Path,
                               notes: HeldNotes | None = None) -> None:
        """Have the image of a process written to a pipe.

        Args:
            pid: of the process.
            fd: of the pipe; it may be closed here at once.
            options: how.
            crid_file: of the counter of crids.
            notes: of what is written, which are kept up; they stay ours.

        Raises:
            WorkerDied: the worker ended; the target runs on.
        """
        await self._send({"call": "checkpoint", "pid": pid, "options": asdict(options), "crid_file": str(crid_file),
                          "notes": {"held": list(notes.fds), "since": notes.since} if notes else None},
                         fd, *(notes.fds.values() if notes else ()))

    async def written(self) -> CheckpointResult:
        """Wait until the image is whole and has a crid; the target of a kill or stop waits for ``commit``.

        Raises:
            CrdError: what the engine raised; the target runs on.
            WorkerDied: the worker ended; the target runs on.
        """
        found, fds = await self._receive("written")
        result = msgspec.convert(found, CheckpointResult)
        self._notes = dict(zip(result.noted, fds, strict=True))
        return result

    def take_notes(self) -> dict[ProcessKey, int]:
        """Return the descriptors of the notes that begin with the image, by process; they are the caller's."""
        notes, self._notes = self._notes, {}
        return notes

    async def begin_restart(self, fd: int, options: RestartOptions) -> None:
        """Have the image that comes from ``fd``, which may be closed here at once, made into tasks.

        Raises:
            WorkerDied: the worker ended; nothing is left.
        """
        await self._send({"call": "restart", "options": asdict(options)}, fd)

    async def ready(self) -> RestartResult:
        """Wait until the tasks are made; they do not run before ``commit``.

        Raises:
            CrdError: what the engine raised; nothing is left.
            WorkerDied: the worker ended; nothing is left.
        """
        found, fds = await self._receive("ready")
        self._listeners = fds
        return msgspec.convert(found, RestartResult, str_keys=True)

    async def check(self, pid: int) -> CheckReport:
        """Return all that stands in the way of a checkpoint (``crd.target.preflight.check``).

        Raises:
            TargetNotFound, TargetGone: there is no such process.
            WorkerDied: the worker ended.
        """
        await self._send({"call": "check", "pid": pid})
        found, _ = await self._receive("")
        return msgspec.convert(found, CheckReport)

    async def features(self) -> dict[str, bool]:
        """Return what this kernel and the worker's privileges offer, by name (``crd.engine.userspace.features``).

        Raises:
            WorkerDied: the worker ended.
        """
        await self._send({"call": "features"})
        found, _ = await self._receive("")
        return {feature["name"]: feature["available"] for feature in found}

    async def serving(self, options: CheckpointOptions) -> str:
        """Return which engine would take an image; what its killed workers left frozen is thawed.

        It is for a worker to say: the daemon's sandbox hides the kernel's symbols, and lets no cgroup be written to.

        Raises:
            FeatureMissing: the kernel is to take it, and nothing proves that it can.
            SettingsError: no such release of Linux-CR was made for this machine.
            WorkerDied: the worker ended.
        """
        await self._send({"call": "serving", "options": asdict(options)})
        found, _ = await self._receive("")
        return str(found)

    def take_listeners(self) -> list[int]:
        """Return the descriptors that tell of the calls of the tasks; they are the caller's."""
        listeners, self._listeners = self._listeners, []
        return listeners

    async def fetch_listener(self, pid: int, fd: int) -> int:
        """Return a descriptor, which is the caller's, of a listener that another process holds.

        Raises:
            BadRequest: it has no such descriptor, or that is no listener.
            WorkerDied: the worker ended.
        """
        await self._send({"call": "fetch", "pid": pid, "fd": fd})
        _, [listener] = await self._receive("fetched")
        await self.commit()
        return listener

    async def serve(self, listener: int, call: Notification, options: CheckpointOptions, crid_file: Path,
                    take: Callable[[int], None]) -> ServedCall:
        """Have a call carried out and answered that was received from a listener.

        Args:
            listener: it stays ours.
            call: which waits.
            options: how checkpoints are taken.
            crid_file: of the counter of crids.
            take: takes over each descriptor that tells of the calls of restarted tasks.

        Raises:
            CrdError: it was not, as far as is known.
        """
        await self._send({"call": "serve", "notification": asdict(call), "options": asdict(options),
                          "crid_file": str(crid_file)}, listener)
        event, found, fds = await self._receive_one_of("ready", "")
        if event:
            for fd in fds:
                take(fd)
            await self._send({"commit": True})
            found, _ = await self._receive("")
        return msgspec.convert(found, ServedCall)

    async def find_terminal(self, pid: int, peer: int, fd: int) -> tuple[str, int]:
        """Find the terminal of a process, which ``commit`` gives to who is at the other end of a socket of a peer's.

        Returns:
            its name, and the pid of the first of the tasks that it is held for, 0 if that has ended.

        Raises:
            CrdError: see ``crd.engine.terminals``.
        """
        await self._send({"call": "attach", "pid": pid, "peer": peer, "fd": fd})
        found, _ = await self._receive("found")
        return found["name"], found["root_pid"]

    async def begin_plan(self, fd: int, options: RestartOptions) -> None:
        """Have it found out what a restart of the image that comes from ``fd`` would make; raises WorkerDied."""
        await self._send({"call": "plan", "options": asdict(options)}, fd)

    async def planned(self) -> RestartPlan:
        """Wait for what a restart would make; then the worker ends.

        Raises:
            CrdError: what the engine raised.
            WorkerDied: the worker ended.
        """
        found, _ = await self._receive("")
        return msgspec.convert(found, RestartPlan)

    async def begin_rehearsal(self, fd: int) -> None:
        """Have a copy of the image that comes from ``fd`` run for a moment in a sandbox; raises WorkerDied."""
        await self._send({"call": "rehearse"}, fd)

    async def rehearsed(self) -> Rehearsal:
        """Wait for what was seen of a copy; nothing is left of it.

        Raises:
            CrdError: what the engine raised.
            WorkerDied: the worker ended.
        """
        found, _ = await self._receive("")
        return msgspec.convert(found, Rehearsal)

    async def commit(self) -> None:
        """Give the word to finish: the image is durable, or the restart is noted.

        Raises:
            CrdError: the last step failed.
            WorkerDied: the worker ended, maybe after the last step.
        """
        await self._send({"commit": True})
        await self._receive("")

    async def end(self) -> None:
        """Kill the worker, which undoes what it has not finished, and wait until it is gone."""
        for fd in (*self.take_notes().values(), *self.take_listeners()):
            os.close(fd)
        self._channel.close()
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        await _readable(self._pidfd)
        os.close(self._pidfd)

    async def _send(self, message: dict[str, Any], *fds: int) -> None:
        try:
            socket.send_fds(self._channel, [msgspec.json.encode(message)], fds)
        except OSError as error:
            raise self._died() from error

    async def _receive(self, event: str) -> tuple[Any, list[int]]:
        _, result, fds = await self._receive_one_of(event)
        return result, fds

    async def _receive_one_of(self, *events: str) -> tuple[str, Any, list[int]]:
        """Return which of these events there was ("": the result), what came with it, and the descriptors."""
        await _readable(self._channel)
        try:
            data, fds, _flags, _address = socket.recv_fds(self._channel, MESSAGE_BYTES_MAX, FDS_MAX)
        except OSError as error:
            raise self._died() from error
        if not data:
            raise self._died()
        message = msgspec.json.decode(data)
        if "error" in message:
            raise CrdError.from_json(message["error"])
        event = message.get("event", "")
        if event not in events:
            raise WorkerDied(f"the engine worker said {message} where {events[0] or 'the result'} was due")
        return event, message["result"], fds

    def _died(self) -> WorkerDied:
        return WorkerDied(f"the engine worker {self.pid} ended before it was done",
                          hint="The daemon's log has what it said last.")


async def _readable(file: socket.socket | int) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(file, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(file)


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

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self._end()

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Worker]:
        """Give out a worker, which does not outlive the context.

        Raises:
            WorkerDied: none can be started.
        """
        worker = await self._worker()
        try:
            yield worker
        finally:
            await asyncio.shield(worker.end())

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
                await _readable(self._control)
                data, fds, _flags, _address = socket.recv_fds(self._control, _PID_BYTES_MAX, 1)
            except OSError:
                data = b""
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
