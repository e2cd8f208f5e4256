"""The daemon's handle on an engine worker: killed when it is late, or when it does not say that it is as new."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
from contextlib import suppress
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
    from collections.abc import Callable
    from pathlib import Path

    from crd.native.notification import Notification

ProcessKey = tuple[int, int]
"""Pid and start time: together they name a process for ever."""


@dataclass(frozen=True, slots=True)
class HeldNotes:
    """Notes of what processes write (``crd.engine.userspace.notes``): their descriptors, by process."""

    fds: dict[ProcessKey, int]
    since: bool


class Worker:
    """One worker process, good for one call, or for another checkpoint if it says so then.

    Attributes:
        pid: of the process.
        is_ready_again: it has said so.
    """

    def __init__(self, pid: int, pidfd: int, channel: socket.socket) -> None:
        """Hold a worker, its pidfd and channel; ``WorkerPool.lease`` gives them out."""
        self.pid = pid
        self.is_ready_again = False
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
        if len(fds) == len(result.noted):
            self._notes = dict(zip(result.noted, fds, strict=True))
        else:  # we have too many: the image is whole without notes
            for fd in fds:
                os.close(fd)
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

    def hand_over(self, take: Callable[[int], None]) -> None:
        """Have taken over each descriptor that tells of the calls of the tasks; raises what ``take`` raises."""
        while self._listeners:
            take(self._listeners.pop(0))

    async def fetch_listener(self, pid: int, fd: int) -> int:
        """Return a descriptor, which is the caller's, of a listener that another process holds.

        Raises:
            BadRequest: it has no such descriptor, or that is no listener.
            WorkerDied: the worker ended.
        """
        await self._send({"call": "fetch", "pid": pid, "fd": fd})
        _, self._listeners = await self._receive("fetched")
        await self.commit()
        return self._listeners.pop()

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
        event, found, self._listeners = await self._receive_one_of("ready", "")
        if event:
            self.hand_over(take)
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

    def is_idle(self) -> bool:
        """Whether it is there, and waits for a call."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        return not poll.poll(0)

    def forget(self) -> None:
        """Close what is left of a call."""
        for fd in self.take_notes().values():
            os.close(fd)
        self.hand_over(os.close)

    async def end(self) -> None:
        """Kill the worker, which undoes what it has not finished, and wait until it is gone."""
        self.forget()
        self._channel.close()
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        await readable(self._pidfd)
        os.close(self._pidfd)

    async def _send(self, message: dict[str, Any], *fds: int) -> None:
        self.is_ready_again = False
        try:
            socket.send_fds(self._channel, [msgspec.json.encode(message)], fds)
        except OSError as error:
            raise self._died() from error

    async def _receive(self, event: str) -> tuple[Any, list[int]]:
        _, result, fds = await self._receive_one_of(event)
        return result, fds

    async def _receive_one_of(self, *events: str) -> tuple[str, Any, list[int]]:
        """Return which of these events there was ("": the result), what came with it, and the descriptors."""
        await readable(self._channel)
        try:
            data, fds, _flags, _address = socket.recv_fds(self._channel, MESSAGE_BYTES_MAX, FDS_MAX)
        except OSError as error:
            raise self._died() from error
        if not data:
            raise self._died()
        message = msgspec.json.decode(data)
        if "error" in message:
            raise CrdError.from_json(message["error"])
        self.is_ready_again = message.get("again", False)
        event = message.get("event", "")
        if event not in events:
            raise WorkerDied(f"the engine worker said {message} where {events[0] or 'the result'} was due")
        return event, message["result"], fds

    def _died(self) -> WorkerDied:
        return WorkerDied(f"the engine worker {self.pid} ended before it was done",
                          hint="The daemon's log has what it said last.")


async def readable(file: socket.socket | int) -> None:
    """Wait until there is something to read."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(file, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(file)
