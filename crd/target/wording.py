"""How obstacles speak of processes."""

from __future__ import annotations

from crd.errors import CrdError
from crd.target import procfs
from crd.text import printable


def process_name(pid: int) -> str:
    """Return "pid 77 (cat)"; without the name if the process is gone."""
    try:
        return f"pid {pid} ({printable(procfs.stat(pid).comm)})"
    except CrdError:
        return f"pid {pid}"


def process_names(pids: list[int], limit: int = 5) -> str:
    """Return the names of a few processes, and how many more there are."""
    names = ", ".join(process_name(pid) for pid in pids[:limit])
    return names if len(pids) <= limit else f"{names} and {len(pids) - limit} more"
