"""The records of POSIX message queues (mq_overview(7)); ``objects`` says where they stand."""

from __future__ import annotations

from crd.image.codec import Record
from crd.image.fields import U8, U32, Bytes, Text  # noqa: TC001  # evaluated when the classes are made
from crd.image.owner import Owner  # noqa: TC001


class PosixQueue(Record, type=0x43520067):
    """A POSIX message queue; its POSIX_QUEUE_MESSAGEs follow."""

    objref: U32
    name: Text  # with the slash
    deleted: U8  # it had that name
    mode: U32  # permission bits
    uid: U32
    gid: U32
    messages_max: U32  # mq_maxmsg
    message_bytes: U32  # mq_msgsize


class PosixQueueMessage(Record, type=0x43520068):
    """A message that waits in it, in the order in which they are received."""

    objref: U32
    priority: U32
    data: Bytes


class PosixQueueOpen(Record, type=0x43520069):
    """One open file description of such a queue."""

    objref: U32
    queue: U32  # objref of the POSIX_QUEUE
    flags: U32  # F_GETFL
    owner: Owner
