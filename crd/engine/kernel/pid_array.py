"""The pid array of an image on its way to the kernel: who is whose child, and new numbers for old (spec 8.1)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.errors import RestartUnsupported
from crd.image.pid_array import OLD_PID_ENTRY_BYTES, PID_ENTRY_BYTES
from crd.image.walk_early import PIDS_WITHOUT_REPEAT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crd.image.inspection import Inspection, RecordEntry

_PIDS = {OLD_PID_ENTRY_BYTES: 3, PID_ENTRY_BYTES: 5}
"""How many pids an entry has at its front; what follows is padding."""


@dataclass(frozen=True, slots=True)
class PidArray:
    """Where an image has its pids.

    Attributes:
        offset: of the first entry.
        entry_bytes: 16 or 24.
        byte_order: of the image, as the struct module writes it.
        children: of each task, in the order of the array; the first one in it is the root.
    """

    offset: int
    entry_bytes: int
    byte_order: str
    children: dict[int, list[int]]

    @property
    def root(self) -> int:
        """The first task."""
        return next(iter(self.children))

    def renumbered(self, array: bytes, numbers: Mapping[int, int]) -> bytes:
        """Return the array with new numbers for those of the image's tasks; others stay."""
        layout = struct.Struct(f"{self.byte_order}{_PIDS[self.entry_bytes]}i")
        new = bytearray(array)
        for start in range(0, len(array), self.entry_bytes):
            layout.pack_into(new, start, *(numbers.get(pid, pid) for pid in layout.unpack_from(array, start)))
        return bytes(new)


def pid_array(image: Inspection) -> PidArray | None:
    """Return where the pids are; None: the image is of patch 04 alone and has no tree.

    Raises:
        RestartUnsupported: these tasks cannot be made: threads, orphans, more than gen-A can number.
    """
    index = next((index for index, entry in enumerate(image.records) if entry.name == "TREE"), None)
    if index is None:
        return None
    offset, entry_bytes = _place(image, *image.records[index:index + 2])
    return PidArray(offset, entry_bytes, "<" if image.byte_order == "little" else ">", _children(image))


def _place(image: Inspection, tree: RecordEntry, after: RecordEntry) -> tuple[int, int]:
    frame_bytes = image.records[1].offset - image.records[0].payload_bytes
    start = tree.offset + frame_bytes + tree.payload_bytes
    if after.name == "BUFFER":
        return start + frame_bytes, PID_ENTRY_BYTES
    return start, (after.offset - start) // len(image.tasks)


def _children(image: Inspection) -> dict[int, list[int]]:
    if not 0 < len(image.tasks) <= (PIDS_WITHOUT_REPEAT if image.generation == "gen-A" else len(image.tasks)):
        raise RestartUnsupported(f"the image has {len(image.tasks)} tasks: kernels of {image.generation} number up to "
                                 f"{PIDS_WITHOUT_REPEAT}")
    children: dict[int, list[int]] = {}
    for task in image.tasks:
        assert task.pid is not None  # noqa: S101  # there is a pid array
        if task.thread_group != task.pid:
            raise RestartUnsupported(f"task {task.pid} is a thread of {task.thread_group}: crd makes no threads for "
                                     "the kernel to restore")
        if task.pid in children or (children and task.parent_pid not in children):
            raise RestartUnsupported(f"task {task.pid} has no parent before it in the image, or is there twice")
        if children and task.parent_pid is not None:
            children[task.parent_pid].append(task.pid)
        children[task.pid] = []
    return children
