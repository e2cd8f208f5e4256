"""From the record stream of an image to the ELF core of one of its tasks."""

from __future__ import annotations

from itertools import chain, islice
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, NamedTuple

from crd.errors import ImageTaskMissing, ImageVersionUnsupported
from crd.image.core import vdso as core_vdso
from crd.image.core.elf import FILE_HEADER, file_header, notes_header
from crd.image.core.mapped import MappedObjects
from crd.image.core.memory import CoreFile, Memory, PageStore
from crd.image.core.task import TaskNotes
from crd.image.cursor import Cursor
from crd.image.generations import PREFIX_BYTES, is_of_a_kernel
from crd.image.profile import PAGE_BYTES, Pages, Process, Profile, SharedPages, Zombie
from crd.image.reader import ImageReader
from crd.image.records import String, Task
from crd.image.vdso import digest
from crd.image.verify import verified
from crd.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.image.codec import Record
    from crd.image.framing import Source
    from crd.image.profile import Vma

_COPIED_BYTES = _IN_MEMORY_BYTES_MAX = 1 << 20
_NAMED_MAX = 20
"""So many tasks an error names."""


class Core(NamedTuple):
    """What was written.

    Attributes:
        pid, comm, exe: of the task, and the path of its program.
        threads: how many.
        memory_bytes: of the pages in it.
        core_bytes: its length, holes included.
    """

    pid: int
    comm: str
    exe: str
    threads: int
    memory_bytes: int
    core_bytes: int


class _Headers:
    """The program headers, in a file until it is known how many there are."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.count = 0

    def add(self, *headers: bytes) -> None:
        self._file.writelines(headers)
        self.count += len(headers)

    def write_to(self, core: CoreFile, at: int) -> int:
        """Copy them, and write the file header; return where the core ends."""
        self._file.seek(0)
        end = at
        while data := self._file.read(_COPIED_BYTES):
            core.write_at(end, data)
            end += len(data)
        header, behind = file_header(at, self.count)
        core.write_at(end, behind)
        core.write_at(0, header)
        return end + len(behind)


def write_core(source: Source, core: CoreFile, pid: int | None = None, vdso: bytes = b"") -> Core:
    """Write the core of a task; without its file header, which comes among the last, it is none.

    The memory that this takes does not grow with that of the task, only with the numbers of its areas and of the
    image's objects; program headers are in a temporary file until it is known how many there are.

    Args:
        source: of the image, which is read once, up to its tail.
        core: what to write to.
        pid: of a task of the image; None: the first.
        vdso: of this host, for an image that was taken with the same.

    Raises:
        ImageError: the image is damaged, or of a Linux-CR kernel (``ImageVersionUnsupported``).
        ImageTaskMissing: it has no such task.
    """
    records = verified(_reader(source))
    tasks = _Tasks(core, pid)
    first = [*islice((record for record in records if not tasks.take(record)), 1)]
    task = tasks.found()
    pages = PageStore(core, task.end + -task.end % PAGE_BYTES)
    vmas: Sequence[Vma] = task.vmas
    if is_same_vdso := digest(vdso) == tasks.vdso_digest:
        vmas = core_vdso.among(vmas, task.layout)
    memory = Memory(vmas, tasks.objects.contents(vmas), pages)
    if is_same_vdso:
        memory.shared(core_vdso.pages(vdso))
    with SpooledTemporaryFile(_IN_MEMORY_BYTES_MAX) as file:
        headers = _Headers(file)
        headers.add(notes_header(FILE_HEADER.size, task.end - FILE_HEADER.size))
        for record in chain(first, records):
            if isinstance(record, SharedPages):
                memory.shared(record)
            elif isinstance(record, Pages) and record.pid == task.process.pid:
                headers.add(*(segment.header() for segment in memory.private(record)))
                task.look_at(record)
        for segment in memory.rest():
            headers.add(segment.header())
        end = headers.write_to(core, pages.end)
    task.write_arguments()
    return Core(task.process.pid, task.comm, task.process.exe, task.threads, pages.bytes, end)


def _reader(source: Source) -> ImageReader:
    image = Cursor(source)
    if is_of_a_kernel(image.peek(PREFIX_BYTES)):
        raise ImageVersionUnsupported("the image was written by a Linux-CR kernel: cores are made of crd's own only",
                                      hint="crd inspect shows what it holds.")
    return ImageReader(image)


class _Tasks:
    """Takes the small records of an image, and keeps those of one task.

    Attributes:
        objects: of the image.
        vdso_digest: of the vdso that it was taken with.
    """

    def __init__(self, core: CoreFile, pid: int | None) -> None:
        self._core = core
        self._pid = pid
        self.objects = MappedObjects()
        self.vdso_digest = b""
        self._head: Task | None = None
        self._comm = ""
        self._others: list[str] = []
        self._found: TaskNotes | None = None
        self._current: TaskNotes | None = None

    def take(self, record: Record) -> bool:
        """Take a record; false: it is of memory, all small ones were before it."""
        match record:
            case SharedPages() | Pages():
                return False
            case Profile():
                self.vdso_digest = record.vdso_digest
            case Task():
                self._head, self._current = record, None
            case String():
                self._comm = record.text
            case Process():
                self._begin(record)
            case Zombie() if record.pid == self._pid:
                raise ImageTaskMissing(f"task {record.pid} of the image has ended, and has no memory", pid=record.pid)
            case _ if self._head is None:
                self.objects.take(record)
            case _ if self._current:
                self._current.take(record)
        return True

    def _begin(self, process: Process) -> None:
        assert self._head is not None  # noqa: S101  # ``verified``
        if self._found is None and self._pid in {None, process.pid}:
            self._found = self._current = TaskNotes(self._core, self.objects, self._head, self._comm, process)
        elif len(self._others) <= _NAMED_MAX:
            self._others.append(f"{process.pid} ({printable(self._comm)})")

    def found(self) -> TaskNotes:
        """Return the task, its notes complete."""
        if self._found is None:
            more = " and others" if len(self._others) > _NAMED_MAX else ""
            raise ImageTaskMissing(f"the image has no task {self._pid}", pid=self._pid,
                                   hint=f"It has {', '.join(self._others[:_NAMED_MAX])}{more}.")
        self._found.finish()
        return self._found
