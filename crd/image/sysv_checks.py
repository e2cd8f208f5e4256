"""What each record of System V IPC must be; ``checks`` has the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.image.checks import check, need, need_flag
from crd.image.objects import MESSAGE_BYTES_MAX
from crd.image.profile import PAGE_BYTES
from crd.image.sysv import SysvMemory, SysvMessage, SysvQueue, SysvSemaphores

if TYPE_CHECKING:
    from crd.image.checks import ImageState

SYSV_NUMBER_MAX, SYSV_MODE_MAX = 2**31 - 1, 0o777
SEMAPHORES_MAX, SEMAPHORE_MAX = 32000, 32767
"""SEMMSL, SEMVMX."""


@check.register(SysvMemory)
def _check_sysv_memory(record: SysvMemory, image: ImageState) -> None:
    need(record.objref == image.whole, f"is of object {record.objref}, which is not the one before it")
    need(record.number <= SYSV_NUMBER_MAX, f"has the number {record.number}")
    whole, _ = image.shared[record.objref]
    need(0 < record.asked_bytes <= whole < record.asked_bytes + PAGE_BYTES, f"has {record.asked_bytes} bytes")
    need(record.mode <= SYSV_MODE_MAX, f"has the mode {record.mode:o}")
    for name in ("removed", "locked"):
        need_flag(getattr(record, name), name)
    image.whole = 0  # it is one segment only


@check.register(SysvSemaphores)
def _check_sysv_semaphores(record: SysvSemaphores, image: ImageState) -> None:
    _need_sysv(record, image)
    need(0 < len(record.values) <= SEMAPHORES_MAX and max(record.values) <= SEMAPHORE_MAX,
         f"has {len(record.values)} semaphores, or one with more than {SEMAPHORE_MAX}")


@check.register(SysvQueue)
def _check_sysv_queue(record: SysvQueue, image: ImageState) -> None:
    _need_sysv(record, image)


@check.register(SysvMessage)
def _check_sysv_message(record: SysvMessage, image: ImageState) -> None:
    need((SysvQueue, record.queue) in image.sysv, f"is in queue {record.queue}, which is not before it")
    need(record.kind > 0, f"is of kind {record.kind}")
    need(len(record.data) <= MESSAGE_BYTES_MAX, f"has {len(record.data)} bytes")


def _need_sysv(record: SysvSemaphores | SysvQueue, image: ImageState) -> None:
    identity = type(record), record.number
    need(record.number <= SYSV_NUMBER_MAX and identity not in image.sysv, f"has the number {record.number}")
    need(record.mode <= SYSV_MODE_MAX, f"has the mode {record.mode:o}")
    image.sysv.add(identity)
