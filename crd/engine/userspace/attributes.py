"""What the owner of the memory, or its snapshot child, knows of it and of its process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.engine.userspace.mem import merging
from crd.engine.userspace.questions import Question
from crd.engine.userspace.sig import actions
from crd.errors import Obstacle, TargetUnsupported
from crd.native.syscall import NR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.engine.userspace.questions import Answer
    from crd.image.profile import SignalActions

_BRK, _PR_GET_DUMPABLE, _PR_GET_THP_DISABLE, _PR_GET_MDWE, _MEMBARRIER_GET_REGISTRATIONS = 12, 3, 42, 66, 512
_OWN_QUESTIONS = [
    Question(_BRK, (0,)),
    Question(NR.PRCTL, (_PR_GET_DUMPABLE,)),
    Question(NR.PRCTL, (_PR_GET_THP_DISABLE, 0, 0, 0, 0)),
    Question(NR.MEMBARRIER, (_MEMBARRIER_GET_REGISTRATIONS, 0)),
    Question(NR.PRCTL, (_PR_GET_MDWE, 0, 0, 0, 0)),
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
    merges: bool
    actions: SignalActions

    @classmethod
    def told(cls, answers: Sequence[Answer]) -> Attributes:
        """Understand the answers to QUESTIONS.

        Raises:
            TargetUnsupported: the target has given up a right for good that a restarted one would have.
        """
        n = len(_OWN_QUESTIONS)
        brk, dumpable, thp_disable, membarrier, mdwe, merges = (answer.result for answer in answers[:n])
        if mdwe > 0:
            raise TargetUnsupported(reasons=[Obstacle(
                "memory.mdwe", "PR_SET_MDWE", "the program lets no memory become executable, which crd cannot save yet",
                "Run it without (systemd: MemoryDenyWriteExecute=no).")])
        return cls(brk, max(0, dumpable), max(0, thp_disable), max(0, membarrier), merges > 0,
                   actions.dump(answers[n:]))
