"""What each record of a shared object must be; ``checks`` has the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.image.checks import ADDRESS_END, FILE_OFFSET_MAX, ImageState, check, need, need_flag
from crd.image.objects import Pipe, PipeData, PipeEnd, RegularFile, SharedMemory
from crd.image.profile import PAGE_BYTES

if TYPE_CHECKING:
    from crd.image.codec import Record

PIPE_DATA_BYTES_MAX = 64 << 10


def _declare(image: ImageState, record: Record) -> None:
    objref: int = record.objref  # type: ignore[attr-defined]
    need(objref and objref not in image.objects, f"takes the objref {objref} a second time")
    image.objects[objref] = type(record)
    image.whole = objref


def _need_whole(image: ImageState, objref: int) -> None:
    need(objref == image.whole, f"is in object {objref}, which is not the one before it")


@check.register(RegularFile)
def _check_file(record: RegularFile, image: ImageState) -> None:
    _declare(image, record)
    need(record.path, "has no path")
    need(record.position <= FILE_OFFSET_MAX and record.size <= FILE_OFFSET_MAX, "has a size or position above 2**63")
    need_flag(record.mapped, "mapped")


@check.register(Pipe)
def _check_pipe(record: Pipe, image: ImageState) -> None:
    _declare(image, record)
    need(record.data_bytes <= record.capacity_bytes, "holds more than its capacity")
    image.pipe, image.pipe_bytes = record, 0


@check.register(PipeData)
def _check_pipe_data(record: PipeData, image: ImageState) -> None:
    _need_whole(image, record.objref)
    need(1 <= len(record.data) <= PIPE_DATA_BYTES_MAX, f"holds {len(record.data)} bytes")
    need_flag(record.packet, "packet")
    image.pipe_bytes += len(record.data)


@check.register(PipeEnd)
def _check_pipe_end(record: PipeEnd, image: ImageState) -> None:
    _declare(image, record)
    image.need_object(record.pipe, Pipe)


@check.register(SharedMemory)
def _check_shared_memory(record: SharedMemory, image: ImageState) -> None:
    _declare(image, record)
    need(0 < record.bytes <= ADDRESS_END and record.bytes % PAGE_BYTES == 0, f"has {record.bytes} bytes")
    image.shared[record.objref] = (record.bytes, 0)
