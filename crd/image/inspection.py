"""What can be learnt from an image of any generation without restarting it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from crd.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crd.image.header import Header

RECORDS_MAX = 1 << 18
"""An image with more records is walked no further: what is remembered of it stays bounded."""
_SHOWN_BYTES = 32


@dataclass(frozen=True, slots=True)
class RecordEntry:
    """A record: where it starts, its number and name, the bytes of its payload, and what it says if that was asked."""

    offset: int
    type: int
    name: str
    payload_bytes: int
    content: str | None = None


@dataclass(slots=True)
class TaskEntry:
    """A task; None: the image does not say."""

    pid: int | None
    parent_pid: int | None
    thread_group: int | None
    comm: str = ""
    state: int | None = None
    exit_signal: int | None = None
    process_group: int | None = None
    session: int | None = None


@dataclass(slots=True)
class MemoryEntry:
    """A virtual memory area and how many of its pages are in the image.

    Attributes:
        pid: of the process; None: not said.
        objref: of the file or shared object that is mapped, 0 if there is none, or it is not said.
    """

    pid: int | None
    start: int
    end: int
    flags: str
    path: str = ""
    offset: int = 0
    pages: int = 0
    objref: int = 0


@dataclass(slots=True)
class FileEntry:
    """An open file descriptor; fd -1: a file that the image only names."""

    pid: int | None
    fd: int
    path: str
    flags: int | None = None
    position: int | None = None
    close_on_exec: bool | None = None


@dataclass(frozen=True, slots=True)
class Damage:
    """Why the image cannot be read on, and where: ``offset`` of the record, ``end`` of what could be read."""

    offset: int
    end: int
    record: str
    error: str
    message: str


@dataclass(slots=True)
class Inspection:
    """Everything that was readable.

    Attributes:
        generation: ``gen-A`` to ``gen-D``, or ``crd``.
        versions: the releases that wrote it.
        byte_order: ``little`` or ``big``.
        image_bytes: up to and with the tail, or to where the image is broken.
        trailing_bytes: behind the tail; normal for images of the ``ckpt`` tool.
        broken: None for a whole image.
        notes: peculiarities of the kernel that wrote it.
        contents: whether it is remembered what records say.
    """

    generation: str
    versions: str
    byte_order: str
    contents: bool = False
    header: Header | None = None
    records: list[RecordEntry] = field(default_factory=list)
    tasks: list[TaskEntry] = field(default_factory=list)
    memory: list[MemoryEntry] = field(default_factory=list)
    files: list[FileEntry] = field(default_factory=list)
    image_bytes: int = 0
    trailing_bytes: int = 0
    broken: Damage | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether the image can be read up to its tail."""
        return self.broken is None

    def add_record(self, entry: RecordEntry) -> None:
        """Remember a record.

        Raises:
            ImageError: there are more than RECORDS_MAX.
        """
        if len(self.records) >= RECORDS_MAX:
            raise ImageError(f"has more than {RECORDS_MAX} records, which is more than crd inspects",
                             offset=entry.offset, record=entry.name)
        self.records.append(entry)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "generation": self.generation, "versions": self.versions, "byte_order": self.byte_order,
            "header": self.header.to_json() if self.header else None, "whole": self.whole,
            "broken": _to_json(self.broken) if self.broken else None, "image_bytes": self.image_bytes,
            "trailing_bytes": self.trailing_bytes, "notes": self.notes,
            "tasks": [*map(_to_json, self.tasks)], "memory": [*map(_to_json, self.memory)],
            "files": [*map(_to_json, self.files)], "records": [*map(_to_json, self.records)],
        }


def shown(fields: Mapping[str, Any]) -> str:
    """Return fields as text, but padding."""
    return " ".join(f"{name}={_value(name, value)}" for name, value in fields.items() if not name.startswith("pad"))


def _value(name: str, value: object) -> object:
    if isinstance(value, bytes | memoryview):
        return hexed(value)
    return f"{value:#x}" if name == "magic" else value


def hexed(data: bytes | memoryview) -> str:
    """Return the beginning of bytes as hexadecimal digits, and how many there are if that is not all."""
    rest = f"...({len(data)} bytes)" if len(data) > _SHOWN_BYTES else ""
    return f"{data[:_SHOWN_BYTES].hex()}{rest}"


def _to_json(entry: RecordEntry | TaskEntry | MemoryEntry | FileEntry | Damage) -> dict[str, Any]:
    """Return the fields of an entry, which are plain values; an image has many entries, and asdict is slow."""
    return {name: getattr(entry, name) for name in entry.__slots__}
