"""System V message queues (msgop(2)): with their messages, which are looked at without being taken."""

from __future__ import annotations

import errno
import struct
from itertools import count
from typing import TYPE_CHECKING

from crd.engine.userspace.ipc import making
from crd.errors import NativeError, RestartError
from crd.image.sysv import SysvMessage, SysvQueue
from crd.native.syscall import NR, syscall
from crd.target import procfs, sysv_ipc

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from crd.engine.userspace.broker import Broker
    from crd.engine.userspace.plan import Plan

_WHAT = "the System V message queue"
_COPY, _NO_WAIT = 0o40000, 0o4000
_STATUS_BYTES, _CAPACITY_AT = 120, 88  # struct msqid64_ds, and in it msg_qbytes
_KIND = struct.Struct("<q")
_BYTES_MAX = 1 << 20


def dump(pids: Container[int]) -> Iterator[SysvQueue | SysvMessage]:
    """Yield the queues that some processes used last, which are stopped, and what is in them."""
    for one in sysv_ipc.queues(pids):
        status = bytearray(_STATUS_BYTES)
        try:
            syscall(NR.MSGCTL, one.id, making.STATUS, status)
            messages = list(_messages(one.id))
        except NativeError:  # removed just now, or not ours to look at
            continue
        yield SysvQueue(number=one.id, key=one.key, mode=one.mode & sysv_ipc.PERMISSIONS, uid=one.uid, gid=one.gid,
                        capacity_bytes=int.from_bytes(status[_CAPACITY_AT:_CAPACITY_AT + 8], "little"))
        yield from messages


def _messages(number: int) -> Iterator[SysvMessage]:
    room = bytearray(_KIND.size + min(procfs.number("sys", "kernel/msgmax"), _BYTES_MAX))
    for index in count():
        try:
            length = syscall(NR.MSGRCV, number, room, len(room) - _KIND.size, index, _COPY | _NO_WAIT)
        except NativeError as error:
            if error.errno == errno.ENOMSG:
                return
            raise
        yield SysvMessage(queue=number, kind=_KIND.unpack_from(room)[0],
                          data=bytes(room[_KIND.size:_KIND.size + length]))


def check(plan: Plan) -> None:
    """Make sure that all queues are there, or can be made; raises RestartError."""
    if records := plan.of(SysvQueue):
        making.check(records, sysv_ipc.queues(), plan, _WHAT)


def restart(plan: Plan, broker: Broker) -> Iterator[str]:
    """Make the queues that are not there; say of the others that they are left as they are.

    Raises:
        RestartError: one cannot be made.
    """
    there = {one.id for one in sysv_ipc.queues()} if plan.of(SysvQueue) else set()
    for record in plan.of(SysvQueue):
        if record.number in there:
            yield f"{_WHAT} {record.number} was there, and was left as it is"
        else:
            _make(record, [one for one in plan.of(SysvMessage) if one.queue == record.number], broker)


def _make(record: SysvQueue, messages: list[SysvMessage], broker: Broker) -> None:
    flags = record.mode | making.CREATE | (making.EXCLUSIVE if record.key else 0)
    making.make(record, "msg_next_id", lambda: syscall(NR.MSGGET, record.key, flags),
                lambda number: syscall(NR.MSGCTL, number, making.REMOVE, 0), broker)
    status = bytearray(_STATUS_BYTES)
    making.PERMISSION.pack_into(status, 0, 0, record.uid, record.gid, 0, 0, record.mode)
    status[_CAPACITY_AT:_CAPACITY_AT + 8] = record.capacity_bytes.to_bytes(8, "little")
    try:
        for one in messages:
            syscall(NR.MSGSND, record.number, _KIND.pack(one.kind) + one.data, len(one.data), _NO_WAIT)
        syscall(NR.MSGCTL, record.number, making.SET, status)
    except NativeError as error:
        raise RestartError(f"{_WHAT} {record.number}: {error.message}", errno=error.errno) from error
