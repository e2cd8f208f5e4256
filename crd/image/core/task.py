"""A task whose core is written: what the small records of an image say of it goes into the notes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.image.core import notes
from crd.image.core.elf import FILE_HEADER
from crd.image.core.memory import runs_of
from crd.image.profile import MemoryLayout, PendingSignal, Thread, Vma

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.image.codec import Record
    from crd.image.core.mapped import MappedObjects
    from crd.image.core.memory import CoreFile
    from crd.image.profile import Pages, Process
    from crd.image.records import Task


class TaskNotes:
    """Writes the notes of a task as its records come, behind the file header.

    Attributes:
        process, comm: the task.
        layout, vmas: its memory.
        threads: how many there were so far.
        end: of the notes so far.
    """

    def __init__(self, core: CoreFile, objects: MappedObjects, task: Task, comm: str, process: Process) -> None:
        """Begin with what says that there is a task.

        Args:
            core: what to write to.
            objects: of the image.
            task: its first record.
            comm: its name.
            process: the record of what its threads share.
        """
        self._core = core
        self._objects = objects
        self._state = task.state
        self.comm = comm
        self.process = process
        self.vmas: list[Vma] = []
        self.threads = 0
        self.end = FILE_HEADER.size
        self.layout: MemoryLayout  # it comes before all that needs it: ``verified``
        self._thread: notes.ThreadState | None = None
        self._arguments = bytearray()
        self._arguments_at = 0

    def take(self, record: Record) -> None:
        """Take a record of the task."""
        match record:
            case MemoryLayout():
                self.layout = record
                self._arguments = bytearray(min(record.arg_end - record.arg_start, notes.ARGUMENTS_BYTES))
            case Vma():
                self.vmas.append(record)
            case Thread():
                self.finish()
                self.threads += 1
                self._thread = notes.ThreadState(record)
            case PendingSignal() if self._thread:
                self._thread.pending.append(record.siginfo)

    def finish(self) -> None:
        """Write the notes of the thread read last: all signals that wait for it are known now."""
        if thread := self._thread:
            self._thread = None
            of_process = self._process_notes(thread) if self.threads == 1 else ()
            for note in notes.thread_notes(thread, self.process, of_process):
                self._core.write_at(self.end, note)
                self.end += len(note)

    def _process_notes(self, leader: notes.ThreadState) -> Iterator[bytes]:
        """Yield the notes of the whole process; each is written before the next one is asked for."""
        program = notes.program_note(self.process, leader.thread, self.comm, self._state)
        self._arguments_at = self.end + len(program) - notes.ARGUMENTS_BYTES - 1
        yield program
        yield from notes.signal_note(leader, self.process)
        yield notes.vector_note(self.layout)
        yield notes.files_note(self._objects.files(self.vmas))

    def look_at(self, record: Pages) -> None:
        """Find the command line in memory of the task."""
        begin, length = self.layout.arg_start, len(self._arguments)
        for address, data in runs_of(record):
            start, end = max(begin, address), min(begin + length, address + data.nbytes)
            if start < end:
                self._arguments[start - begin:end - begin] = data[start - address:end - address]

    def write_arguments(self) -> None:
        """Write the command line into its note, with spaces between its words."""
        self._core.write_at(self._arguments_at, self._arguments.replace(b"\0", b" "))
