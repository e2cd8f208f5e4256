"""POSIX message queues: mq_overview(7)."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from crd.engine.userspace.fds import mqueue_data
from crd.engine.userspace.fds.kind import Kind, Making, TryLaterError
from crd.errors import NativeError, Obstacle, ResourceChanged, RestartError
from crd.image.posix_queue import PosixQueue, PosixQueueMessage, PosixQueueOpen
from crd.target import message_queues
from crd.target.paths import DELETED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.fds.table import FileTable
    from crd.image.codec import Record


class MessageQueues(Kind):
    """A POSIX_QUEUE with its POSIX_QUEUE_MESSAGEs for each, a POSIX_QUEUE_OPEN for each description."""

    def recognises(self, one: Description) -> bool:
        """By what only such a one answers."""
        return stat.S_ISREG(one.stat.st_mode) and message_queues.may_be(one.stat) and mqueue_data.is_queue(one.borrowed)

    def dump(self, found: Sequence[Description], table: FileTable) -> Iterator[Record]:
        """Note what they are, and copy what waits.

        Raises:
            TryLaterError: somebody is to be told when a message comes.
        """
        queues: dict[tuple[int, int], int] = {}
        for one in found:
            identity = one.stat.st_dev, one.stat.st_ino
            if identity not in queues:
                queues[identity] = table.objects.new()
                yield from _dump(one, queues[identity])
            yield PosixQueueOpen(objref=one.objref, queue=queues[identity], flags=one.flags, owner=one.owner)

    def make(self, making: Making) -> None:
        """Open those that are still there, and make the others.

        Raises:
            ResourceChanged: another one has the name.
            RestartError: one cannot be made.
        """
        ours: dict[int, int] = {}
        for record in making.wanted(PosixQueueOpen):
            making.act_for(record.objref)
            queue: PosixQueue = making.plan.objects[record.queue]
            try:
                if queue.objref not in ours:
                    ours[queue.objref] = _have(queue, making)
                with making.broker.as_the_task():
                    fd = os.open(f"/proc/self/fd/{ours[queue.objref]}", record.flags & os.O_ACCMODE | os.O_CLOEXEC)
            except (OSError, NativeError) as error:
                raise RestartError(f"the message queue {queue.name}: {os.strerror(error.errno or 0)}",
                                   errno=error.errno) from error
            making.add(record.objref, fd, record.flags)


def _dump(one: Description, objref: int) -> Iterator[PosixQueue | PosixQueueMessage]:
    messages_max, message_bytes, waiting = mqueue_data.attributes(one.borrowed)
    if message_queues.notifies(f"/proc/self/fd/{one.borrowed}"):
        raise TryLaterError(Obstacle("fd.mqueue", one.name, *message_queues.NOTIFIES))
    yield PosixQueue(objref=objref, name=one.link.removesuffix(DELETED) if not one.stat.st_nlink else one.link,
                     deleted=not one.stat.st_nlink, mode=stat.S_IMODE(one.stat.st_mode), uid=one.stat.st_uid,
                     gid=one.stat.st_gid, messages_max=messages_max, message_bytes=message_bytes)
    for priority, data in mqueue_data.look(one.borrowed) if waiting else ():
        yield PosixQueueMessage(objref=objref, priority=priority, data=data)


def _have(queue: PosixQueue, making: Making) -> int:
    """Return our descriptor of a queue.

    Raises:
        NativeError: the kernel does not let us, or the task.
    """
    flags, room = os.O_RDWR | os.O_NONBLOCK, (queue.messages_max, queue.message_bytes)
    try:
        with making.broker.as_the_task():
            fd = making.broker.hold(mqueue_data.create(queue.name, flags | os.O_CREAT | os.O_EXCL, queue.mode, *room))
    except NativeError as error:
        if error.errno != errno.EEXIST:
            raise
        return _find(queue, making)

    def unlink() -> None:
        with suppress(NativeError):
            mqueue_data.unlink(queue.name)

    making.broker.undo(unlink)
    for message in making.plan.parts(PosixQueueMessage, queue.objref):
        mqueue_data.put(fd, (message.priority, message.data))
    if queue.deleted:
        unlink()
    elif not os.geteuid():
        os.fchown(fd, queue.uid, queue.gid)
        os.fchmod(fd, queue.mode)
    return fd


def _find(queue: PosixQueue, making: Making) -> int:
    """Return our descriptor of a queue that is there."""
    with making.broker.as_the_task():
        fd = making.broker.hold(mqueue_data.create(queue.name, os.O_RDWR | os.O_NONBLOCK, 0, 1, 1))
    if queue.deleted or mqueue_data.attributes(fd)[:2] != (queue.messages_max, queue.message_bytes):
        raise ResourceChanged(f"the message queue {queue.name} is another one than the image knew", path="",
                              hint="Remove it, if nobody needs it: rm /dev/mqueue" + queue.name)
    making.notes.append(f"the message queue {queue.name} was there, and was left as it is")
    return fd
