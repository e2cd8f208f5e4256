"""What the owner of the memory, or its snapshot child, knows of it and of its process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.engine.userspace.mem import mdwe, merging
from crd.engine.userspace.questions import Question
from crd.engine.userspace.sig import actions
from crd.native.syscall import NR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.engine.userspace.questions import Answer
    from crd.image.profile import SignalActions

_BRK, _PR_GET_DUMPABLE, _PR_GET_THP_DISABLE, _MEMBARRIER_GET_REGISTRATIONS = 12, 3, 42, 512
_OWN_QUESTIONS = [
    Question(_BRK, (0,)),
    Question(NR.PRCTL, (_PR_GET_DUMPABLE,)),
    Question(NR.PRCTL, (_PR_GET_THP_DISABLE, 0, 0, 0, 0)),
    Question(NR.MEMBARRIER, (_MEMBARRIER_GET_REGISTRATIONS, 0)),
    mdwe.QUESTION,
    merging.QUESTION,
]
QUESTIONS = [*_OWN_QUESTIONS, *actions.QUESTIONS]


@dataclass(slots=True)
class Attributes:
    """Of a process."""

    brk: int
    dumpable: int
    thp_disable: int
    membarrier: int
    mdwe: int
    merges: bool
    actions: SignalActions

    @classmethod
    def told(cls, answers: Sequence[Answer]) -> Attributes:
        """Understand the answers to QUESTIONS."""
        n = len(_OWN_QUESTIONS)
        brk, dumpable, thp_disable, membarrier, denied, merges = (answer.result for answer in answers[:n])
        return cls(brk, max(0, dumpable), max(0, thp_disable), max(0, membarrier), max(0, denied), merges > 0,
                   actions.dump(answers[n:]))
