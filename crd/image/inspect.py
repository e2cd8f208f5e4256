"""Inspects an image of any generation."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from crd.errors import ImageError
from crd.image.cursor import Cursor
from crd.image.generations import PREFIX_BYTES, Generation, recognise
from crd.image.inspection import Damage, FileEntry, Inspection, MemoryEntry, RecordEntry, TaskEntry, shown
from crd.image.objects import DESCRIPTIONS, PipeEnd, RegularFile
from crd.image.profile import (
    PAGE_BYTES,
    VMA_PRIVATE_FILE,
    FileDescriptor,
    Pages,
    Process,
    SharedPages,
    Thread,
    Vma,
    Zombie,
)
from crd.image.reader import ImageReader
from crd.image.records import String, Task
from crd.image.verify import verified
from crd.image.walk_early import walk_early
from crd.image.walk_late import walk_late
from crd.image.walker import Walker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.image.codec import Record
    from crd.image.framing import Source


def inspect(source: Source, *, contents: bool = False) -> Inspection:
    """Read an image, and what follows it, to the end; what is broken is part of the answer.

    Args:
        source: of the image.
        contents: remember what each record says, not only where it is.

    Raises:
        ImageError: it is no image of any Linux-CR generation.
    """
    cursor = Cursor(source)
    dialect = recognise(cursor.peek(PREFIX_BYTES))
    inspection = Inspection(dialect.generation, dialect.generation.versions,
                            "little" if dialect.byte_order == "<" else "big", contents)
    try:
        if dialect.generation is Generation.CRD:
            _walk_crd(cursor, inspection)
        else:
            walker = Walker(cursor, dialect, inspection)
            inspection.header = walker.header()
            late = dialect.generation in {Generation.C, Generation.D}
            (walk_late if late else walk_early)(walker)
    except ImageError as error:
        inspection.broken = Damage(error.offset, cursor.offset, error.record, error.code, error.message)
    inspection.image_bytes = cursor.offset
    if inspection.whole:
        if _is_image(cursor.peek(PREFIX_BYTES)):
            inspection.notes.append(f"another image begins at offset {cursor.offset}")
        inspection.trailing_bytes = cursor.rest()
    return inspection


def inspect_front(source: Source) -> Inspection:
    """Read an image of crd's profile up to its first page: all but what is in memory.

    Raises:
        ImageError: it is broken, of a kernel, or has too many records.
    """
    inspection = Inspection(Generation.CRD, Generation.CRD.versions, "little")
    reader = ImageReader(source)
    inspection.header = reader.header
    walk = _CrdWalk(inspection)
    for record in verified(reader):
        if isinstance(record, Pages | SharedPages):
            break
        inspection.add_record(RecordEntry(reader.offset, record.record_type, record.record_name, 0))
        walk.add(record)
    return inspection


def _is_image(front: bytes) -> bool:
    with suppress(ImageError):
        return bool(recognise(front))
    return False


def _walk_crd(cursor: Cursor, inspection: Inspection) -> None:
    reader = ImageReader(cursor)
    inspection.header = reader.header
    walk = _CrdWalk(inspection)
    for record in _remembered(reader, inspection):
        walk.add(record)


def _remembered(reader: ImageReader, inspection: Inspection) -> Iterator[Record]:
    inspection.records = [RecordEntry(0, 1, "HEAD", 40),
                          *(RecordEntry(offset, 3, "BUFFER", 65) for offset in (48, 121, 194))]
    for record in verified(reader):
        said = shown({name: getattr(record, name) for name in record.fields}) if inspection.contents else None
        inspection.add_record(RecordEntry(reader.offset, record.record_type, record.record_name,
                                          reader.bytes_read - reader.offset - 8, said))
        yield record
    inspection.add_record(RecordEntry(reader.offset, 5001, "TAIL", 8))


class _CrdWalk:
    """Gathers tasks, memory and files from the records of crd's profile."""

    def __init__(self, inspection: Inspection) -> None:
        self.inspection = inspection
        self.objects: dict[int, tuple[str, int, int | None]] = {}  # path, flags, position
        self.task: Task | None = None
        self.comm = ""
        self.process: Process | None = None
        self.areas: dict[int, deque[MemoryEntry]] = {}  # by pid; those that may still get pages

    def add(self, record: Record) -> None:
        match record:
            case Task():
                self.task = record
            case String():
                self.comm = record.text
            case Process():
                self.process = record
            case Vma() if self.process:
                self.area(record, self.process.pid)
            case FileDescriptor():
                path, flags, position = self.objects[record.objref]
                self.inspection.files.append(FileEntry(record.pid, record.fd, path, flags, position,
                                                       bool(record.close_on_exec)))
            case Thread() | Zombie():
                self.inspection.tasks.append(self.task_entry(record))
            case Pages():
                self.pages(record)
            case _ if isinstance(record, (RegularFile, *DESCRIPTIONS)):
                self.description(record)
            case _:
                pass

    def task_entry(self, record: Thread | Zombie) -> TaskEntry:
        task, process = self.task, self.process
        assert task is not None  # noqa: S101
        assert process is not None  # noqa: S101
        if isinstance(record, Zombie):
            return TaskEntry(record.pid, record.parent_pid, record.pid, self.comm, task.exit_state, record.exit_signal,
                             record.process_group, record.session)
        return TaskEntry(record.tid, process.parent_pid, process.pid, record.comm, task.state, process.exit_signal,
                         process.process_group, process.session)

    def description(self, record: Any) -> None:
        """Note an open file description."""
        match record:
            case RegularFile():
                self.objects[record.objref] = (record.path, record.flags, record.position)
            case PipeEnd():
                self.objects[record.objref] = (f"pipe:[{record.pipe}]", record.flags, None)
            case _:
                self.objects[record.objref] = (f"[{record.record_name.lower()}]", record.flags, None)

    def area(self, vma: Vma, pid: int) -> None:
        letters = "".join(letter if vma.protection & bit else "-" for bit, letter in ((1, "r"), (2, "w"), (4, "x")))
        path = self.objects[vma.objref][0] if vma.objref in self.objects else vma.name
        shared = "s" if vma.kind > VMA_PRIVATE_FILE else "p"
        entry = MemoryEntry(pid, vma.start, vma.end, letters + shared, path, vma.offset, objref=vma.objref)
        self.areas.setdefault(pid, deque()).append(entry)
        self.inspection.memory.append(entry)

    def pages(self, record: Pages) -> None:
        """Count the pages of each area; they ascend, so an area that lies before them gets no more."""
        areas = self.areas[record.pid]
        for run in record.runs:
            address, end = run.address, run.address + run.pages * PAGE_BYTES
            while address < end:
                while areas[0].end <= address:
                    areas.popleft()
                part = min(end, areas[0].end) - address
                areas[0].pages += part // PAGE_BYTES
                address += part


