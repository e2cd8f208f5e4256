"""Whose a tree of tasks is: who may see, checkpoint and restart it, besides root and the group ``crd``.

A tree is a user's if each thread has that user's uid and one gid, four times each, and no capability.  Whatever has
more, be it a setuid or setgid program, one with file capabilities, or a child of another user's, is root's: who could
restart it at will would have its rights for longer than they were meant to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from crd.target.model import Status

ROOT_UID = 0


def owner(threads: Iterable[tuple[Sequence[int], Sequence[int], int]]) -> int:
    """Return the uid of whose the threads are, 0 for root.

    Args:
        threads: of each its uids and gids (real, effective, saved, of the file system) and its capabilities, as bits.
    """
    owners = {uids[0] if len({*uids}) == 1 and len({*gids}) == 1 and not capabilities else ROOT_UID
              for uids, gids, capabilities in threads}
    return owners.pop() if len(owners) == 1 else ROOT_UID


def credentials(status: Status) -> tuple[Sequence[int], Sequence[int], int]:
    """Return of a thread what ``owner`` asks for."""
    return status.uids, status.gids, status.capabilities("Prm") | status.capabilities("Inh")
