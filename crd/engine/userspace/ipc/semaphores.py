"""System V semaphores (semop(2)): sets with their values."""

from __future__ import annotations

import array
import os
import signal
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from crd.engine.userspace.ipc import making
from crd.errors import NativeError, Obstacle, RestartError, TargetUnsupported
from crd.image.sysv import SysvSemaphores
from crd.native.syscall import NR, kcmp, syscall
from crd.target import sysv_ipc
from crd.target.sysv_ipc import Semaphores

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from crd.engine.userspace.broker import Broker
    from crd.engine.userspace.plan import Plan

_WHAT = "the set of System V semaphores"
_GET_PID, _GET_ALL, _SET_ALL = 11, 13, 17
_KCMP_UNDO = 6
_A_WHILE_SECONDS = 3
"""Longer than the second that is the unit of their times, and a clock that is set back a little."""
_STATUS_BYTES = 104  # struct semid64_ds


def look() -> dict[str, set[int]]:
    """Return who used sets last that have been at rest for a while, by what is told of each.

    As long as the same is told of one, so they did: each use changes the time of the last one.
    """
    before = time.time() - _A_WHILE_SECONDS
    found = {}
    for line in sysv_ipc.semaphore_lines():
        one = Semaphores.parsed(line)
        if one.changed_at < before:
            with suppress(NativeError):  # removed just now, or not ours to look at
                found[line] = _users(one)
    return found


def _users(one: Semaphores) -> set[int]:
    return {syscall(NR.SEMCTL, one.id, index, _GET_PID, 0) for index in range(one.length)}


def dump(threads: Mapping[int, Collection[int]], at_rest: Mapping[str, set[int]]) -> Iterator[SysvSemaphores]:
    """Yield the sets that some processes used last, which are stopped.

    Args:
        threads: of each process, by pid.
        at_rest: what ``look`` has seen before the stop.

    Raises:
        TargetUnsupported: one may have operations to be undone at its end (SEM_UNDO), which the kernel does not tell.
    """
    for line in sysv_ipc.semaphore_lines():
        if threads.keys().isdisjoint(at_rest.get(line, threads)):
            continue
        one = Semaphores.parsed(line)
        try:
            users = _users(one) & threads.keys()
            if not users:
                continue
            values = bytearray(2 * one.length)
            syscall(NR.SEMCTL, one.id, 0, _GET_ALL, values)
        except NativeError:  # removed just now, or not ours to look at
            continue
        for pid in users:
            _refuse_undo(pid, threads[pid], one)
        yield SysvSemaphores(number=one.id, key=one.key, mode=one.mode & sysv_ipc.PERMISSIONS, uid=one.uid, gid=one.gid,
                             values=[*array.array("H", values)])


def _refuse_undo(pid: int, tids: Collection[int], one: Semaphores) -> None:
    """Refuse a process that may have operations to undo: it has a list of them, as has who has ever made a thread."""
    with _somebody_without() as other:
        undoing = [tid for tid in tids if kcmp(tid, other, _KCMP_UNDO) != 0]
    if undoing:
        raise TargetUnsupported(pid=pid, reasons=[Obstacle(
            "task.sem-undo", f"thread {undoing[0]}",
            f"may have operations on System V semaphores {one.id} to be undone when it ends (SEM_UNDO), which the "
            "kernel does not tell", "Checkpoint it when the semaphores are removed, or run it without them.")])


@contextmanager
def _somebody_without() -> Iterator[int]:
    """Give the pid of a process that has never had an operation to undo: a new one has inherited none."""
    child = os.fork()
    if not child:
        signal.pause()
        os._exit(0)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def check(plan: Plan) -> None:
    """Make sure that all sets are there, or can be made; raises RestartError."""
    if records := plan.of(SysvSemaphores):
        making.check(records, sysv_ipc.semaphores(), plan, _WHAT)


def restart(plan: Plan, broker: Broker) -> Iterator[str]:
    """Make the sets that are not there; say of the others that they are left as they are.

    Raises:
        RestartError: one cannot be made.
    """
    there = {one.id for one in sysv_ipc.semaphores()} if plan.of(SysvSemaphores) else set()
    for record in plan.of(SysvSemaphores):
        if record.number in there:
            yield f"{_WHAT} {record.number} was there, and was left as it is"
        else:
            _make(record, broker)


def _make(record: SysvSemaphores, broker: Broker) -> None:
    flags = record.mode | making.CREATE | (making.EXCLUSIVE if record.key else 0)
    making.make(record, "sem_next_id", lambda: syscall(NR.SEMGET, record.key, len(record.values), flags),
                lambda number: syscall(NR.SEMCTL, number, 0, making.REMOVE, 0), broker)
    owner = making.PERMISSION.pack(0, record.uid, record.gid, 0, 0, record.mode).ljust(_STATUS_BYTES, b"\0")
    try:
        syscall(NR.SEMCTL, record.number, 0, _SET_ALL, array.array("H", record.values).tobytes())
        syscall(NR.SEMCTL, record.number, 0, making.SET, owner)
    except NativeError as error:
        raise RestartError(f"{_WHAT} {record.number}: {error.message}", errno=error.errno) from error
