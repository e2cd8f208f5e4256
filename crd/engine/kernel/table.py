"""The numbers of Linux-CR's system calls, by release of the patches and architecture (spec section 1.4)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from crd.errors import SettingsError

SUBTREE = 0x1
"""CHECKPOINT_SUBTREE (v16): the target is no container of its own."""
TASK_SELF = 0x1
"""RESTART_TASKSELF (v17): the caller alone becomes the task of the image."""
GHOST = 0x4
"""RESTART_GHOST (v18): the caller only keeps a pid in use, and ends when all tasks are restored."""


@dataclass(frozen=True, slots=True)
class CallNumbers:
    """How the calls of one release are made on one architecture.

    Attributes:
        release: of the patches, as ``engine.linux_cr`` names it.
        checkpoint, restart: numbers.
        arguments: 3, or 4 with a descriptor for messages, of which -1 is none (v19).
        checkpoint_flags: for a target that is a part of what runs.
        restart_flags: for a single task.
        coordinated: the root's parent directs the restart of a tree (v17): it calls with the root's pid, and all others
            with 0; before, they all call with the root's.
        kernels: the versions that the release was made for, where the specification tells.
        revisions: of the image format (spec section 3.2), where it tells.
    """

    release: str
    checkpoint: int
    restart: int
    arguments: int = 3
    checkpoint_flags: int = 0
    restart_flags: int = 0
    coordinated: bool = False
    kernels: tuple[str, ...] = ()
    revisions: tuple[int, ...] = ()

    @property
    def generation(self) -> str:
        """Of its image format (``crd.image.generations``); "" if the release is not known."""
        return _GENERATIONS.get(self.release, "gen-D" if self.release in _RELEASES else "")

    def words(self, first: int, fd: int, flags: int) -> tuple[int, ...]:
        """Return the arguments of a call."""
        return (first, fd, flags) if self.arguments == 3 else (first, fd, flags, -1)


_RELEASES = {  # name: arguments, checkpoint flags, restart flags, coordinated, kernels, revisions
    "v13": (3, 0, 0, False, ("2.6.27", "2.6.28"), (1, 2, 3)),
    "v14-rc": (3, 0, 0, False, ("2.6.29",), ()),
    "v14": (3, 0, 0, False, (), ()),
    "v16": (3, SUBTREE, 0, False, ("2.6.30",), (1,)),
    "v18": (3, SUBTREE, TASK_SELF, True, (), (3,)),
    "v19": (4, SUBTREE, TASK_SELF, True, (), (4,)),
    "v21": (4, SUBTREE, TASK_SELF, True, (), (5, 6)),
    "v23": (4, SUBTREE, TASK_SELF, True, (), (6,)),
    "3.0": (4, SUBTREE, TASK_SELF, True, ("3.0",), (6,)),
}
"""v13 stands for v1 to v13, v14 for v14 and v15, v18 for v17 and v18, v19 for the first of its release candidates (the
later ones have the numbers of v21), v21 for v20 and v21."""

_GENERATIONS = {"v13": "gen-A", "v14-rc": "gen-B", "v14": "gen-C", "v16": "gen-C"}

_FIRST_NUMBERS = {
    "i386": {"v13": 333, "v14-rc": 333, "v14": 335, "v16": 335, "v18": 338, "v19": 338, "v21": 339, "v23": 342,
             "3.0": 348},
    "x86_64": {"v19": 300, "v21": 301, "v23": 304, "3.0": 313},
    "s390": {"v14-rc": 328, "v14": 330, "v16": 330, "v18": 332, "v19": 333, "v21": 333, "v23": 336, "3.0": 341},
    "powerpc": {"v14-rc": 319, "v18": 323, "v19": 324, "v21": 324, "v23": 346},
    "arm": {"v21": 367, "3.0": 377},
}
"""Of checkpoint; restart has the next one."""

_BY_HAND = re.compile(r"(\d{1,4})/(\d{1,4})/([34])")


def architecture_of(machine: str) -> str:
    """Return the architecture of what uname(2) calls the machine, "" if the patches were never made for it."""
    for pattern, architecture in ((r"i[3-6]86", "i386"), (r"x86_64", "x86_64"), (r"s390x?", "s390"),
                                  (r"ppc(64)?", "powerpc"), (r"armv\w+", "arm")):
        if re.fullmatch(pattern, machine):
            return architecture
    return ""


def releases(machine: str) -> dict[str, CallNumbers]:
    """Return the calls of every release that was made for such a machine."""
    numbers = _FIRST_NUMBERS.get(architecture_of(machine), {})
    return {release: CallNumbers(release, first, first + 1, *_RELEASES[release]) for release, first in numbers.items()}


def named(text: str, machine: str) -> CallNumbers:
    """Return the calls that the operator names: a release, or ``CHECKPOINT/RESTART/ARGUMENTS``.

    Numbers given by hand are called as v14 is called.

    Raises:
        SettingsError: there is no such release for this machine.
    """
    if by_hand := _BY_HAND.fullmatch(text):
        checkpoint, restart, arguments = map(int, by_hand.groups())
        return CallNumbers(text, checkpoint, restart, arguments)
    known = releases(machine)
    if text not in known:
        raise SettingsError(f"engine.linux_cr: no release {text!r} of Linux-CR was made for {machine}",
                            hint=f"For {machine} there are: {', '.join(known)}." if known else
                            "Give the numbers: CHECKPOINT/RESTART/ARGUMENTS.")
    return known[text]
