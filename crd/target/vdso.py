"""The vdso of this process, which is that of every process of this boot."""

from __future__ import annotations

import os
from contextlib import suppress

from crd.errors import TargetError
from crd.target import procfs


def own_vdso() -> bytes:
    """Return what is in its area; empty if there is none, or none that /proc shows."""
    with suppress(TargetError):
        if area := next((entry for entry in procfs.maps("self") if entry.path == "[vdso]"), None):
            with procfs.asking("self", "mem"), open(procfs.path("self", "mem"), "rb", buffering=0) as memory:
                return os.pread(memory.fileno(), area.end - area.start, area.start)
    return b""
