"""Walks images of gen-C and gen-D: nearly everything is framed, and objects stand before what refers to them.

What is inside most of their records is not known to crd (spec section 6.1): names, sizes, tasks and paths are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.errors import ImageCorrupt
from crd.image.codec import corrupt
from crd.image.generations import TREE, V16, V16_REGISTERS_ONLY, V18, V23
from crd.image.inspection import RECORDS_MAX, FileEntry, TaskEntry
from crd.image.pid_array import PID_ENTRY_BYTES, pid_entry, pid_entry_bytes
from crd.image.walk_early import LDT_ENTRY_BYTES, PAGE_BYTES, word_bytes

if TYPE_CHECKING:
    from crd.image.walker import Step, Walker

_FULL_FRAME_TASK_BYTES = 32


def walk_late(walker: Walker) -> None:
    """Read all that follows the header.

    Raises:
        ImageError: the image is broken.
    """
    inspection = walker.inspection
    unnamed: list[TaskEntry] = []  # tasks of the pid array that no TASK record has described yet
    task: TaskEntry | None = None
    failed = False
    while (name := _next_name(walker)) != "TAIL":
        step = walker.step()
        if name == "TREE" and walker.layouts is not V23:
            inspection.tasks = _tree(walker, step)
            unnamed = inspection.tasks[::-1]
        elif name == "PIDS":
            inspection.tasks = _pids(walker, step.payload)
            unnamed = inspection.tasks[::-1]
        elif name == "TASK":
            if not unnamed:
                unnamed.append(TaskEntry(None, None, None))
                inspection.tasks.append(unnamed[-1])
            task = unnamed.pop()
            task.state, task.exit_signal = step.fields.get("state"), step.fields.get("exit_signal")
        elif name == "STRING" and failed:
            reason = step.payload[1:].partition(b"\0")[0].decode("utf-8", "replace")
            raise ImageCorrupt(f"the checkpoint failed: {reason}", offset=step.entry.offset, record="ERROR")
        elif name == "STRING" and task and not task.comm:
            task.comm = step.text
        elif name == "FILE_NAME":
            inspection.files.append(FileEntry(None, -1, step.text))
        elif name in _BETWEEN:
            _BETWEEN[name](walker, step)
        failed = name == "ERROR"
    walker.tail()


def _next_name(walker: Walker) -> str:
    """Return the next record's name; the first task record tells which patches or release wrote the image."""
    frame = walker.cursor.peek(walker.dialect.frame_bytes)
    if len(frame) == walker.dialect.frame_bytes:
        number, length = walker.dialect.unpack(walker.dialect.frame, frame)
        if number == 101 and walker.layouts is V16 and length == _FULL_FRAME_TASK_BYTES:
            walker.layouts = V16_REGISTERS_ONLY
        if number == 101 and walker.layouts is V18 and length != walker.dialect.frame_bytes + (TREE.payload_bytes or 0):
            walker.layouts = V23
    return walker.next_name()


def _tree(walker: Walker, step: Step) -> list[TaskEntry]:
    """Read the pid array that follows TREE: raw in v14, a BUFFER from v15 or v16 on."""
    n_tasks = step.fields["tasks"]
    if n_tasks > RECORDS_MAX:
        raise corrupt(f"counts {n_tasks} tasks", step.entry.offset, step.name)
    if walker.next_name() == "BUFFER":
        return _pids(walker, walker.step().payload[:n_tasks * PID_ENTRY_BYTES])
    entry_bytes = pid_entry_bytes(walker, n_tasks, preferred=PID_ENTRY_BYTES)
    return _pids(walker, walker.raw(n_tasks * entry_bytes, "pid array"), entry_bytes)


def _pids(walker: Walker, array: bytes, entry_bytes: int = PID_ENTRY_BYTES) -> list[TaskEntry]:
    return [pid_entry(walker, array[start:start + entry_bytes])
            for start in range(0, len(array) - entry_bytes + 1, entry_bytes)]


def _pipe(walker: Walker, step: Step) -> None:
    if len(step.payload) < 4:
        raise corrupt(f"has {len(step.payload)} bytes", step.entry.offset, step.name)
    (n_bytes,) = walker.dialect.unpack("i", step.payload)
    if n_bytes < 0:
        raise corrupt(f"counts {n_bytes} bytes", step.entry.offset, step.name)
    walker.skip_raw(n_bytes, "pipe data")


def _head_arch(walker: Walker, step: Step) -> None:
    walker.xstate_bytes = step.fields.get("xstate_bytes", 0)


def _pages(walker: Walker, step: Step) -> None:
    header = walker.inspection.header
    if n_pages := step.fields.get("pages"):
        walker.block(n_pages * (word_bytes(header.machine if header else "") + PAGE_BYTES), "pages")


def _ldt(walker: Walker, step: Step) -> None:
    if n_entries := step.fields.get("nldt"):
        walker.block(n_entries * LDT_ENTRY_BYTES, "LDT")


def _tls(walker: Walker, step: Step) -> None:
    if step.fields.get("ntls"):
        walker.block(step.fields["tls_bytes"], "TLS")


def _fpu(walker: Walker, step: Step) -> None:
    if step.fields.get("used_math") and walker.xstate_bytes:
        walker.block(walker.xstate_bytes, "FPU state")


_BETWEEN = {"HEAD_ARCH": _head_arch, "FILE_PIPE": _pipe, "PGARR": _pages, "MM_CONTEXT": _ldt, "THREAD": _tls,
            "CPU": _fpu}
"""What comes between the records of gen-C: which release has framed what is known of v16 only."""
