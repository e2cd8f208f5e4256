"""The array of pids behind TREE, which no header describes: entries of 16 bytes at first, of 24 later (spec 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.image.generations import TASK
from crd.image.inspection import TaskEntry

if TYPE_CHECKING:
    from crd.image.walker import Walker

OLD_PID_ENTRY_BYTES = 16
"""vpid, vtgid, vppid and a word of padding."""
PID_ENTRY_BYTES = 24
"""vpid, vppid, vtgid, vpgid, vsid and a word more."""
_LOOK_AHEAD_BYTES_MAX = 1 << 20


def pid_entry(walker: Walker, data: bytes) -> TaskEntry:
    """Return the task of an entry of either size."""
    if len(data) == OLD_PID_ENTRY_BYTES:
        pid, group, parent = walker.dialect.unpack("iii", data)
        return TaskEntry(pid, parent, group)
    pid, parent, group, process_group, session = walker.dialect.unpack("5i", data)
    return TaskEntry(pid, parent, group, process_group=process_group, session=session)


def pid_entry_bytes(walker: Walker, n_tasks: int, preferred: int = OLD_PID_ENTRY_BYTES) -> int:
    """Return the size of the entries that come next: the one behind which a TASK stands, else ``preferred``."""
    frame_bytes = walker.dialect.frame_bytes
    if n_tasks * PID_ENTRY_BYTES > _LOOK_AHEAD_BYTES_MAX:
        return preferred
    ahead = walker.cursor.peek(n_tasks * PID_ENTRY_BYTES + frame_bytes)
    for entry_bytes in (OLD_PID_ENTRY_BYTES, PID_ENTRY_BYTES):
        frame = ahead[n_tasks * entry_bytes:][:frame_bytes]
        if len(frame) < frame_bytes:
            continue
        number, length = walker.dialect.unpack(walker.dialect.frame, frame)
        overhead = frame_bytes if walker.dialect.length_counts_frame else 0
        if walker.layouts.get(number) is TASK and length - overhead == TASK.payload_bytes:
            return entry_bytes
    return preferred
