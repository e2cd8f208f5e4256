"""Walks images of gen-A and gen-B: raw blocks between the records, and the referrer before the object.

Spec sections 3.3, 4 and the facts D1 to D18 learnt from real kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crd.errors import ImageTruncated
from crd.image.codec import corrupt
from crd.image.generations import Generation
from crd.image.inspection import RECORDS_MAX, FileEntry, MemoryEntry, TaskEntry
from crd.image.pid_array import OLD_PID_ENTRY_BYTES, pid_entry, pid_entry_bytes

if TYPE_CHECKING:
    from crd.image.walker import Walker

PAGE_BYTES = 4096
PIDS_WITHOUT_REPEAT = 256
"""gen-A kernels fill the pid array from its start again after so many entries (D10)."""

_VM_FLAGS = ((1, "r"), (2, "w"), (4, "x"))
_VM_SHARED = 8
_VMA_FILE = 2
_KINDS_WITH_PATH = {1, 2}  # of FD_DATA: a file, a directory
LDT_ENTRY_BYTES = 8
_X86_32 = {"", "i386", "i486", "i586", "i686"}


def word_bytes(machine: str) -> int:
    """Return the size of a virtual address in an image of such a machine."""
    return 4 if machine in _X86_32 or machine in {"s390", "ppc"} or machine.startswith("arm") else 8


def walk_early(walker: Walker) -> None:
    """Read all that follows the header.

    Raises:
        ImageError: the image is broken.
    """
    walk = _EarlyWalk(walker)
    try:
        walk.walk()
    except ImageTruncated as error:
        if error.offset == walker.cursor.offset and (reason := walk.reason(error.record)):
            walker.inspection.notes.append(reason)
        raise


class _EarlyWalk:
    def __init__(self, walker: Walker) -> None:
        self.walker = walker
        self.inspection = walker.inspection
        self.objects: dict[int, tuple[str, dict[str, Any]]] = {}
        self.pid: int | None = None
        header = walker.inspection.header
        machine = header.machine if header else ""
        self.word_bytes = word_bytes(machine)
        self.is_x86 = machine in {*_X86_32, "x86_64"}

    def walk(self) -> None:
        walker = self.walker
        if walker.next_name() == "HEAD_ARCH":
            walker.xstate_bytes = walker.step().fields.get("xstate_bytes", 0)
        tasks = self.tree() if walker.next_name() == "TREE" else [TaskEntry(None, None, None)]
        self.inspection.tasks = tasks
        for task in tasks:
            self.task(task)
        walker.tail()

    def reason(self, missing: str) -> str:
        """Return why a kernel would have stopped writing in front of this record, "" if it would not (D11, D16)."""
        match missing:
            case "FD_DATA":
                fd = self.inspection.files[-1].fd
                return (f"the checkpoint failed at descriptor {fd} of task {self.pid}: it is open on something that "
                        "this kernel does not save, as a terminal, pipe or device (EBADF)")
            case "VMA":
                return (f"the checkpoint failed at the memory of task {self.pid}: the area behind the last one is of a "
                        "kind that this kernel does not save, as shared memory (ENOSYS)")
            case "pid array":
                return "the checkpoint failed at the tasks: one of them was a zombie (EAGAIN)"
        return ""

    def tree(self) -> list[TaskEntry]:
        step = self.walker.step()
        n_tasks = step.fields["tasks"]
        if n_tasks > RECORDS_MAX:
            raise corrupt(f"counts {n_tasks} tasks", step.entry.offset, step.name)
        is_a = self.walker.dialect.generation is Generation.A
        entry_bytes = OLD_PID_ENTRY_BYTES if is_a else pid_entry_bytes(self.walker, n_tasks)
        tasks = []
        for index in range(n_tasks):
            entry = pid_entry(self.walker, self.walker.raw(entry_bytes, "pid array"))
            tasks.append(TaskEntry(None, None, None) if is_a and index >= PIDS_WITHOUT_REPEAT else entry)
        if is_a and n_tasks > PIDS_WITHOUT_REPEAT:
            self.inspection.notes.append(
                f"the pid array repeats after {PIDS_WITHOUT_REPEAT} entries, as kernels of gen-A write it: "
                "parents of the tasks behind are not known")
        return tasks

    def task(self, task: TaskEntry) -> None:
        walker = self.walker
        fields = walker.expect("TASK").fields
        task.state, task.exit_signal = fields["state"], fields["exit_signal"]
        task.comm = walker.expect("STRING").text
        self.pid = task.pid
        if walker.next_name() == "MM":
            self.memory(task)
        if walker.next_name() == "FILES":
            self.files()
        if walker.next_name() == "THREAD":
            self.thread()
        if walker.next_name() == "CPU":
            self.cpu()

    def memory(self, task: TaskEntry) -> None:
        walker = self.walker
        mm = walker.step()
        if walker.dialect.generation is Generation.A:
            # gen-A puts the task's pid into the parent of this record: the only place for tasks after the 256th
            task.pid = self.pid = task.pid if task.pid is not None else mm.parent
        for _ in range(mm.fields["map_count"]):
            self.area()
        context = walker.expect("MM_CONTEXT")
        walker.skip_raw(context.fields.get("nldt", 0) * LDT_ENTRY_BYTES, "LDT")

    def area(self) -> None:
        walker = self.walker
        step = walker.expect("VMA")
        vma = step.fields
        if vma["end"] < vma["start"]:
            raise corrupt(f"ends before it starts (0x{vma['start']:x})", step.entry.offset, step.name)
        flags = "".join(letter if vma["flags"] & bit else "-" for bit, letter in _VM_FLAGS)
        entry = MemoryEntry(self.pid, vma["start"], vma["end"], flags + ("s" if vma["flags"] & _VM_SHARED else "p"),
                            offset=vma["page_offset"] * PAGE_BYTES)
        self.inspection.memory.append(entry)
        if vma["kind"] == _VMA_FILE:
            entry.path = walker.expect("FNAME").text
        else:
            entry.path = self.path_if_any()  # gen-B has kinds of shared memory, too
        while n_pages := (pages := walker.expect("PGARR")).fields["pages"]:
            if n_pages * PAGE_BYTES > vma["end"] - vma["start"]:
                raise corrupt(f"counts {n_pages} pages", pages.entry.offset, pages.name)
            walker.skip_raw(n_pages * (self.word_bytes + PAGE_BYTES), "pages")
            entry.pages += n_pages

    def files(self) -> None:
        walker = self.walker
        for _ in range(walker.step().fields["nfds"]):
            fd = walker.expect("FD_ENT").fields
            entry = FileEntry(self.pid, fd["fd"], "", close_on_exec=bool(fd["close_on_exec"]))
            self.inspection.files.append(entry)
            if fd["objref"] not in self.objects:
                data = walker.expect("FD_DATA").fields
                is_pipe = walker.dialect.generation is Generation.B and data.get("kind") not in _KINDS_WITH_PATH
                self.objects[fd["objref"]] = (self.path_if_any() if is_pipe else walker.expect("FNAME").text, data)
            entry.path, data = self.objects[fd["objref"]]
            entry.flags, entry.position = data.get("flags"), data.get("position")

    def path_if_any(self) -> str:
        """Return the path that follows, if one does; only gen-B has records of which that is not known."""
        walker = self.walker
        is_there = walker.dialect.generation is Generation.B and walker.known_name() == "FNAME"
        return walker.step().text if is_there else ""

    def thread(self) -> None:
        thread = self.walker.step().fields
        if thread.get("ntls"):
            self.walker.skip_raw(thread["tls_bytes"], "TLS")

    def cpu(self) -> None:
        step = self.walker.step()
        # gen-B may have dropped two debug registers already: the last word says in both whether the FPU was used
        used_math = self.walker.dialect.unpack("I", step.payload[-4:])[0] if len(step.payload) >= 256 else 0
        if used_math and self.is_x86:
            self.walker.skip_raw(self.walker.xstate_bytes, "FPU state")


