"""Who belongs to a target: a process and its descendants."""

from __future__ import annotations

from collections import deque

from crd.errors import TargetGone
from crd.target import procfs


def family(pid: int) -> dict[int, int]:
    """Return a process and its descendants as they are at this moment, parents first, each with its parent.

    Zombies are left out.

    Raises:
        TargetGone: it ended meanwhile.
    """
    found, new = {pid: 0}, deque([pid])
    while new:
        parent = new.popleft()
        try:
            children = [child for child in procfs.children(parent) if procfs.stat(child).state not in "ZX"]
        except TargetGone:
            if parent == pid:
                raise
            continue
        new += [child for child in children if child not in found]
        found |= {child: parent for child in children if child not in found}
    return found
