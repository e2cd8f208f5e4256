"""Who belongs to a target: a process and its descendants."""

from __future__ import annotations

from collections import deque

from crd.errors import TargetError, TargetGone
from crd.target import procfs


class Family(dict[int, int]):
    """The processes of a target as they were at a moment, parents first, each with its parent; no zombies."""

    def __init__(self, pid: int, *, descendants: bool = True) -> None:
        """Find a process and, if wanted, its descendants.

        Raises:
            TargetGone: it has ended.
        """
        super().__init__({pid: 0})
        self._descendants = descendants
        new = deque([pid] if descendants else [])
        while new:
            parent = new.popleft()
            try:
                children = [child for child in procfs.children(parent) if not has_ended(child)]
            except TargetGone:
                if parent == pid:
                    raise
                continue
            new += [child for child in children if child not in self]
            self.update({child: parent for child in children if child not in self})

    def lacks(self, pid: int) -> bool:
        """Whether a process is none of these, is not a descendant that has come since, and has not ended."""
        try:
            while pid and pid not in self:
                pid = procfs.stat(pid).parent_pid if self._descendants else 0
        except TargetError:
            return False
        return not pid


def has_ended(pid: int) -> bool:
    """Whether a process is a zombie or gone."""
    try:
        return procfs.stat(pid).state in "ZX"
    except TargetGone:
        return True
