"""Whether the name of an open or mapped file still leads to it: then, and only then, a restart can open it again."""

from __future__ import annotations

import os
import stat
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import stat_result

    from crd.target.model import MapEntry

DELETED = " (deleted)"

SHARED_MEMORY = "/dev/shm/"  # noqa: S108  (shm_overview(7), sem_overview(7))


class Reach(Enum):
    """What the name of a file leads to, as a clause about the file."""

    SAME = ""
    DELETED = "was deleted while in use"
    UNLINKED = "lost the name it was opened by (other hard links exist)"
    REPLACED = "was replaced: its name leads to another file now"
    HIDDEN = "cannot be reached by its name from here (another mount hides it, or it is on one that crd does not see)"


def reach(link: str, file: stat_result) -> Reach:
    """Find out where the kernel's name of a file leads; the last component is not followed.

    Args:
        link: text of the link in /proc, made by the kernel, with " (deleted)" behind a name that is gone.  A file may
            also be called so: link count and inode decide, never the text.
        file: fstat of the file itself.
    """
    found = _lstat(link)
    if found is not None and _same(found, file):
        return Reach.SAME
    if file.st_nlink == 0:
        replaced = link.endswith(DELETED) and _is_such_a_file(link.removesuffix(DELETED))
        return Reach.REPLACED if replaced else Reach.DELETED
    if link.endswith(DELETED):
        return Reach.UNLINKED
    return Reach.HIDDEN


def name_left(link: str, inode: int) -> str:
    """Return another hard link of a file, in the directory of the name that it lost; "" if there is none.

    A file that is made under a passing name, linked to its own and unlinked from the first (as sem_open(3) does it)
    shows the first one for good.
    """
    try:
        with os.scandir(os.path.dirname(link)) as entries:  # noqa: PTH120  (as the kernel has it)
            return next((entry.path for entry in entries if entry.inode() == inode), "")
    except OSError:
        return ""


def is_memory_with_a_name(link: str) -> bool:
    """Whether a file is in the directory of POSIX shared memory and semaphores: mapped shared it is memory."""
    return link.startswith(SHARED_MEMORY)


def is_shared_memory(entry: MapEntry) -> bool:
    """Whether a mapping is memory that processes may share, other than through a file that has a name for it."""
    return entry.shared and entry.is_file and (entry.deleted or entry.path.startswith("[anon_shmem:")
                                               or is_memory_with_a_name(entry.path))


def _lstat(path: str) -> stat_result | None:
    if not path.startswith("/"):
        return None
    try:
        return os.lstat(path)
    except (OSError, ValueError):
        return None


def _is_such_a_file(path: str) -> bool:
    found = _lstat(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def _same(one: stat_result, other: stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
