"""Checks the records of an image of crd's profile against each other, as they stream by.

What a verified image still may lie about is content: register values, bytes of pages, names.  What it cannot do is
make a restart index, allocate or write where nothing was declared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.image import (  # register their checks
    memory_checks,  # noqa: F401
    object_checks,  # noqa: F401
    posix_queue_checks,  # noqa: F401
    socket_checks,  # noqa: F401
    sysv_checks,  # noqa: F401
)
from crd.image.checks import ImageState, MisfitError, check, need
from crd.image.codec import Record, corrupt
from crd.image.objects import BETWEEN, OBJECTS, PARTS, PipeData
from crd.image.profile import (
    Confinement,
    Dispatch,
    EpollTarget,
    FileDescriptor,
    FileLock,
    GuardRegions,
    IntervalTimer,
    LocalDescriptors,
    Machine,
    Mdwe,
    MemoryLayout,
    Merging,
    Pages,
    PendingSignal,
    PosixTimer,
    Process,
    Profile,
    ResourceLimit,
    Served,
    SharedPages,
    Sharing,
    SignalActions,
    Thread,
    ThreadDescriptors,
    ThreadPolicy,
    Vma,
    Zombie,
)
from crd.image.records import HeadArch, String, Tail, Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.image.reader import ImageReader

_OBJECTS: set[type[Record]] = {*OBJECTS, *BETWEEN}
_OPEN_FILES: list[type[Record]] = [FileDescriptor, EpollTarget, FileLock]
_OF_THREAD: list[type[Record]] = [ThreadPolicy, Machine, Dispatch, ThreadDescriptors, Confinement]
_BEHIND_THREAD: list[type[Record]] = [PendingSignal, Thread, Task, SharedPages, Pages, Tail]
_TIMERS_AND_LIMITS: list[type[Record]] = [IntervalTimer, PosixTimer, ResourceLimit, Thread]


def _parts_of(whole: type[Record]) -> set[type[Record]]:
    return {part for part, kind in PARTS.items() if kind is whole}


_NEXT: dict[type[Record], set[type[Record]]] = {
    HeadArch: {Profile},
    Profile: {*_OBJECTS, Task},
    **{kind: {*_OBJECTS, *_parts_of(kind), Task} for kind in OBJECTS},
    **{kind: {*_OBJECTS, Task} for kind in BETWEEN},
    **{part: {*_OBJECTS, *_parts_of(whole), Task} for part, whole in PARTS.items()},
    Task: {String},
    String: {Process, Zombie},
    Process: {Sharing, Served, MemoryLayout},
    Sharing: {Served, MemoryLayout},
    Served: {MemoryLayout},
    MemoryLayout: {Mdwe, Merging, LocalDescriptors, Vma, *_OPEN_FILES, SignalActions},
    Mdwe: {Merging, LocalDescriptors, Vma, *_OPEN_FILES, SignalActions},
    Merging: {LocalDescriptors, Vma, *_OPEN_FILES, SignalActions},
    LocalDescriptors: {Vma, *_OPEN_FILES, SignalActions},
    Vma: {Vma, GuardRegions, *_OPEN_FILES, SignalActions},
    GuardRegions: {GuardRegions, *_OPEN_FILES, SignalActions},
    FileDescriptor: {*_OPEN_FILES, SignalActions},
    EpollTarget: {*_OPEN_FILES[1:], SignalActions},
    FileLock: {*_OPEN_FILES[2:], SignalActions},
    SignalActions: {PendingSignal, *_TIMERS_AND_LIMITS},
    IntervalTimer: {*_TIMERS_AND_LIMITS},
    PosixTimer: {*_TIMERS_AND_LIMITS[1:]},
    ResourceLimit: {*_TIMERS_AND_LIMITS[2:]},
    Thread: {*_OF_THREAD, *_BEHIND_THREAD},
    **{kind: {*_OF_THREAD[at:], *_BEHIND_THREAD} for at, kind in enumerate(_OF_THREAD, 1)},
    Zombie: {Task, SharedPages, Pages, Tail},
    SharedPages: {SharedPages, Pages, Tail},
    Pages: {Pages, Tail},
}
"""What may follow what; a PENDING_SIGNAL may be followed by whatever may follow the record before it."""


def verified(reader: ImageReader) -> Iterator[Record]:
    """Yield the reader's records, each after it has been checked against those before it.

    Raises:
        ImageError: as the reader does; ImageCorrupt at the first record that does not fit.
    """
    image = ImageState()
    for record in reader:
        _apply(image, record, reader.offset)
        yield record
    _apply(image, Tail(), reader.offset)


def _apply(image: ImageState, record: Record, offset: int) -> None:
    try:
        _check_order(image, type(record))
        check(record, image)
    except MisfitError as error:
        raise corrupt(str(error), offset, record.record_name) from None


def _check_order(image: ImageState, kind: type[Record]) -> None:
    allowed: set[type[Record]] = {HeadArch} if image.previous is None else _NEXT[image.previous]
    before = image.previous.record_name if image.previous else "the header"
    need(kind in allowed, f"may not follow {before}")
    if image.pipe and kind is not PipeData:
        need(image.pipe_bytes == image.pipe.data_bytes, f"follows a PIPE with {image.pipe_bytes} bytes of data "
                                                         f"instead of {image.pipe.data_bytes}")
        image.pipe = None
    if kind is not PendingSignal:
        image.previous = kind


