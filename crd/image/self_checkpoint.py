"""The smallest v14 image: what patch 04 alone writes when a task checkpoints itself (spec section 7.1).

``HEAD BUFFER BUFFER BUFFER TASK STRING TAIL``, read by the rules of v14-rc2's own reader (spec section 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.image.codec import Record, corrupt
from crd.image.framing import FRAME, FrameReader, Sink, Source
from crd.image.header import Header, read_header
from crd.image.records import MAGIC_TAIL, TASK_COMM_BYTES, Numbering, String, Tail, Task, terminated

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class SelfCheckpoint:
    """The header, one task and its name."""

    header: Header
    task: Task
    comm: String
    numbering: Numbering = Numbering.PATCH_04

    @classmethod
    def read(cls, source: Source) -> SelfCheckpoint:
        """Read one from the front of ``source``; nothing behind the tail is read.

        Raises:
            ImageError: as the kernel refuses it, which ``details["errno"]`` repeats: EINVAL, or EPIPE at an early end.
        """
        frames = FrameReader(source, payload_bytes_max=1 << 12)
        header, numbering = read_header(frames)
        task = Task.decode(_payload(frames, Task, numbering, 24, exact=True), frames.start)
        if task.comm_bytes > TASK_COMM_BYTES:
            raise corrupt(f"has a name of {task.comm_bytes} bytes", frames.start, Task.record_name)
        comm = String(data=terminated(_payload(frames, String, numbering, task.comm_bytes, exact=False)))
        tail = Tail.decode(_payload(frames, Tail, numbering, 8, exact=True), frames.start)
        if tail.magic != MAGIC_TAIL:
            raise corrupt(f"has magic 0x{tail.magic:016x}", frames.start, Tail.record_name)
        return cls(header, task, comm, numbering)

    def write(self, sink: Sink) -> None:
        """Write it as the kernel does."""
        sink.write(*self._frames([*self.header.to_records(), self.task, self.comm, Tail()]))

    def _frames(self, records: Iterable[Record]) -> Iterable[bytes]:
        for record in records:
            payload = record.encode()
            yield FRAME.pack(self.numbering.number(type(record)), len(payload))
            yield payload


def _payload(frames: FrameReader, kind: type[Record], numbering: Numbering, capacity: int, *,
             exact: bool) -> memoryview:
    """Read a record of up to ``capacity`` bytes; a longer one is refused unread, a wrong one after it was read."""
    record_type, length = frames.frame()
    payload = frames.payload(length, kind.record_name, capacity)
    if record_type != numbering.number(kind) or (exact and length != capacity):
        raise corrupt(f"has type {record_type} and {length} bytes", frames.start, kind.record_name)
    return payload
