"""POSIX message queues (mq_overview(7)): files of a file system of their own, each with a line about its queue."""

from __future__ import annotations

import re
import stat
from typing import TYPE_CHECKING

from crd.errors import Obstacle
from crd.target import procfs
from crd.target.holders import file_holders
from crd.target.wording import process_names

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from crd.target.descriptors import Open
    from crd.target.nameless import Look

NOTIFIES = ("has somebody who is to be told of the next message (mq_notify(3)), of which the kernel does not tell all",
            "Try again when that has been told.")
_FILE_BYTES = 80  # FILENT_SIZE of ipc/mqueue.c
_LINE = re.compile(rb"QSIZE:\d+ +NOTIFY:\d+ +SIGNO:\d+ +NOTIFY_PID:(\d+) *\n")


def may_be(file: os.stat_result) -> bool:
    """Whether a file may be a queue, by its stat."""
    return stat.S_ISREG(file.st_mode) and file.st_size == _FILE_BYTES


def notifies(path: str) -> bool | None:
    """Whether a queue has somebody to tell of the next message; None if the file is no queue, or we may not look."""
    try:
        with open(path, "rb", buffering=0) as file:
            found = _LINE.fullmatch(file.read(_FILE_BYTES).rstrip(b"\0"))
    except OSError:
        return None
    return int(found[1]) != 0 if found else None


def obstacles(entry: Open, look: Look) -> Iterator[Obstacle] | None:
    """Find what keeps a queue from being saved; None if the descriptor is none of a queue."""
    if not may_be(entry.file):
        return None
    notified = notifies(str(procfs.PROC / str(look.pid) / "fd" / str(entry.fd)))
    return None if notified is None else _obstacles(entry, look, notified=notified)


def _obstacles(entry: Open, look: Look, *, notified: bool) -> Iterator[Obstacle]:
    if notified:
        yield Obstacle("fd.mqueue", entry.name, *NOTIFIES)
    identity = entry.file.st_dev, entry.file.st_ino
    if others := file_holders(look.inside, {entry.link}, {identity}).get(identity):
        yield Obstacle("fd.mqueue", entry.name,
                       f"is a message queue that is open elsewhere too, in {process_names(others)}",
                       "Checkpoint it when the other process has closed it.")
