"""The pid array of an image on its way to the kernel: who is to be made, and new numbers for old (spec 8.1)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.engine.kernel.forest import Node, Role, forest
from crd.errors import RestartUnsupported
from crd.image.generations import Generation
from crd.image.pid_array import OLD_PID_ENTRY_BYTES, PID_ENTRY_BYTES
from crd.image.walk_early import PIDS_WITHOUT_REPEAT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from crd.image.inspection import Inspection, TaskEntry


@dataclass(frozen=True, slots=True)
class PidArray:
    """The tasks of an image, and where it has their pids.

    Attributes:
        root: the first process, and all that it makes.
        tasks: in the order of the array.
        offset: of the first entry; None: the image is of patch 04 alone and has no array.
        entry_bytes: 16 or 24.
        byte_order: of the image, as the struct module writes it.
    """

    root: Node
    tasks: tuple[TaskEntry, ...]
    offset: int | None = None
    entry_bytes: int = 0
    byte_order: str = "<"

    @property
    def n_bytes(self) -> int:
        """Size of the array."""
        return self.entry_bytes * len(self.tasks)

    def renumbered(self, array: bytes, numbers: Mapping[int, int]) -> bytes:
        """Return the array as it is for the tasks that were made: others' pids in it, and the padding, stay.

        Args:
            array: as the image has it.
            numbers: of those in the image, the pids that they have now.
        """
        new = bytearray(array)
        layout = struct.Struct(f"{self.byte_order}{'3i' if self.entry_bytes == OLD_PID_ENTRY_BYTES else '5i'}")
        for index, pids in enumerate(self._pids()):
            layout.pack_into(new, index * self.entry_bytes, *(numbers.get(pid, pid) for pid in pids))
        return bytes(new)

    def _pids(self) -> Iterator[tuple[int, ...]]:
        """Iterate over what the entries hold, as it was planned, with the image's numbers."""
        nodes = {node.pid: node for node in self.root.family() if node.role is Role.TASK}
        for task in self.tasks:
            pid, process = task.pid or 0, task.thread_group or 0
            node = nodes[process]
            parent_pid = node.parent.pid if node.parent else task.parent_pid or 0
            yield ((pid, process, parent_pid) if self.entry_bytes == OLD_PID_ENTRY_BYTES else
                   (pid, parent_pid, process, node.process_group, node.session))


def pid_array(image: Inspection) -> PidArray:
    """Return who is to be made, and where the pids are.

    Raises:
        RestartUnsupported: these tasks cannot be made: see ``forest``, and gen-A can number few.
    """
    n_tasks = len(image.tasks)
    place = _place(image, n_tasks)
    if place is None:
        return PidArray(Node(0, None), ())
    if image.generation == Generation.A and n_tasks > PIDS_WITHOUT_REPEAT:
        raise RestartUnsupported(f"the image has {n_tasks} tasks: kernels of {image.generation} number up to "
                                 f"{PIDS_WITHOUT_REPEAT}")
    if n_tasks != sum(entry.name == "TASK" for entry in image.records):
        raise RestartUnsupported(f"the image numbers {n_tasks} tasks and holds others: they may be in pid namespaces "
                                 "of their own, which crd does not make for the kernel")
    return PidArray(forest(image.tasks), tuple(image.tasks), *place, "<" if image.byte_order == "little" else ">")


def _place(image: Inspection, n_tasks: int) -> tuple[int, int] | None:
    """Return offset of the array and size of its entries; None: there is none."""
    index = next((index for index, entry in enumerate(image.records) if entry.name in {"PIDS", "TREE"}), None)
    if index is None or not n_tasks:
        return None
    frame_bytes = image.records[1].offset - image.records[0].payload_bytes
    tree, after = image.records[index:index + 2]
    if tree.name == "PIDS":
        return tree.offset + frame_bytes, PID_ENTRY_BYTES
    start = tree.offset + frame_bytes + tree.payload_bytes
    if after.name == "BUFFER":
        return start + frame_bytes, PID_ENTRY_BYTES
    return start, (after.offset - start) // n_tasks
