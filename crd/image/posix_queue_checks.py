"""What each record of POSIX message queues must be; ``checks`` has the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.image.checks import check, need, need_flag
from crd.image.object_checks import declare
from crd.image.posix_queue import PosixQueue, PosixQueueMessage, PosixQueueOpen

if TYPE_CHECKING:
    from crd.image.checks import ImageState

MESSAGES_MAX, MESSAGE_BYTES_MAX = 65536, 1 << 20
"""HARD_MSGMAX; what fits into a record."""
PRIORITY_MAX = 32767
MODE_MAX = 0o777


@check.register(PosixQueue)
def _check_posix_queue(record: PosixQueue, image: ImageState) -> None:
    declare(image, record)
    need(record.name.startswith("/") and "/" not in record.name[1:] and record.name != "/", "has no name of a queue")
    need_flag(record.deleted, "deleted")
    need(record.mode <= MODE_MAX, f"has the mode {record.mode:o}")
    need(0 < record.messages_max <= MESSAGES_MAX and 0 < record.message_bytes <= MESSAGE_BYTES_MAX,
         f"has room for {record.messages_max} messages of {record.message_bytes} bytes")
    image.queue = record


@check.register(PosixQueueMessage)
def _check_posix_queue_message(record: PosixQueueMessage, image: ImageState) -> None:
    need(image.queue and record.objref == image.whole == image.queue.objref,
         f"is in object {record.objref}, which is not the one before it")
    need(image.queue and len(record.data) <= image.queue.message_bytes, f"has {len(record.data)} bytes")
    need(record.priority <= PRIORITY_MAX, f"has the priority {record.priority}")


@check.register(PosixQueueOpen)
def _check_posix_queue_open(record: PosixQueueOpen, image: ImageState) -> None:
    declare(image, record)
    image.need_object(record.queue, PosixQueue)
